// Sampling on the device: kernels/sample.h's definition, a block per row.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>

#include "kernels/sample.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_sample {
    int n, vocab;
    float *logits; // [n][vocab], rows `stride` elements apart; rows with penalties are changed
    size_t stride;
    const struct kern_sample_row *rows; // [n] on the device
    const int32_t *history;             // on the device; penalised rows' pieces do not overlap
    size_t history_n;                   // tokens in all
    struct kern_sample_out *out;        // [n] on the device
    void *scratch;                      // cuda_sample_scratch_bytes(), 8-byte aligned
};
size_t cuda_sample_scratch_bytes(const struct cuda_sample *s);
// Launched with programmatic stream serialization: the writer of the logits may still be running.
cudaError_t cuda_sample(cudaStream_t stream, const struct cuda_sample *s);

#ifdef __cplusplus
}
#endif
