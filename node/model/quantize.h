// Writes a checkpoint in another precision. What is quantized: the matrices of attention, MLPs and
// experts (model_quantizes); everything else is copied, kv_b_proj expanded to bf16 when it was
// quantized. Layouts, both read by Hadal and as published elsewhere:
//   fp8:  NAME.weight F8_E4M3, NAME.weight_scale_inv F32 [rows / 128 up][cols / 128 up];
//         config.json: quantization_config.quant_method "fp8" (DeepSeek-V3)
//   int8: NAME.weight I8, NAME.weight_scale F32 [rows][1]; config.json: quant_method
//         "compressed-tensors", format "int-quantized", weights per channel, activations per token
//   bf16: NAME.weight BF16; config.json without quantization_config
// The output folder appears whole or not at all: it is written under another name and renamed.
// Other files of the model folder (tokenizer, generation_config.json, ...) are copied; folders in
// it are not.
#pragma once

#include "node/model/source.h"
#include "node/model/weights.h"

struct quantize_args {
    struct model_source source;     // random: a checkpoint of the shape is written
    enum model_precision to;        // BF16, FP8 or INT8
    const char *out;                // must not exist
    uint64_t file_bytes;            // of weights in one file; 0 = 4 GB. A tensor is never cut
    int threads;                    // 0 = all cores that this process may use
    struct model_progress progress; // called from this thread
};

// EXISTS: out is there. BAD_CONFIG: the checkpoint has that precision already. BAD_MODEL names file
// and tensor.
STATUS_MUST_USE enum status model_quantize(const struct quantize_args *args, struct errmsg *e);
