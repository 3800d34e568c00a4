// The model that is used when none is named: models/sample beside the build folder, where it was
// installed, or in the current folder.
#pragma once

#include <stdbool.h>

// A model folder by its full path, found once; NULL when there is none. Static memory.
const char *sample_model(void);
// Whether the folder holds a config.json that can be read.
bool is_model_folder(const char *dir);
