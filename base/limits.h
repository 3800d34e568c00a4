// Limits on everything that comes from outside or grows. A limit that an operator may want to
// change is a config key whose default is taken from here; the others are fixed by the design.
#pragma once

enum {
    LIMIT_NODES = 8192,           // members a coordinator keeps
    LIMIT_STAGES = 64,            // pipeline stages of a replica
    LIMIT_TENSOR = 64,            // tensor ranks of a stage
    LIMIT_RANKS = 1024,           // stages x tensor
    LIMIT_NAME = 64,              // bytes of node names, model names, ids (with NUL)
    LIMIT_PATH = 1024,            // bytes of paths in messages (with NUL)
    LIMIT_ADDR = 256,             // bytes of one transport address blob
    LIMIT_RAIL_ADDRS = 1024,      // those of all rails, with commas between them
    LIMIT_CONTEXT = 1 << 20,      // tokens of one sequence
    LIMIT_VOCAB = 1 << 20,        // tokens of a vocabulary
    LIMIT_FRAME_BYTES = 16 << 20, // one protobuf frame
    LIMIT_HTTP_BODY = 8 << 20,    // one HTTP request body
    LIMIT_STOP_STRINGS = 16,      // per request; OpenAI allows 4
    LIMIT_STOP_BYTES = 1024,      // per stop string
    LIMIT_TOP_LOGPROBS = 20,      // OpenAI's limit
    LIMIT_JSON_DEPTH = 64,        // nesting accepted in a request's JSON document
    LIMIT_JSON_NODES = 1 << 17,   // its objects, arrays and members of objects together
    LIMIT_JSON_VALUES = LIMIT_CONTEXT + LIMIT_JSON_NODES, // a prompt may be a list of ids
};
