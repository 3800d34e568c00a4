// Bodies of a stranger's HTTP requests.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "coordinator/openai.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int kind = OPENAI_CHAT; kind <= OPENAI_COMPLETION; kind++) {
        struct openai_request r;
        struct openai_error e = {0};
        struct strbuf json = {0};
        if (openai_parse((enum openai_kind)kind, (const char *)data, size, &r, &e)) {
            openai_request_finish(&r);
            continue;
        }
        openai_error_json(&e, &json);
        if (e.http < 400 || !json.n)
            abort();
        strbuf_finish(&json);
    }
    return 0;
}
