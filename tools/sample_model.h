// The model that is used when none is named: models/sample beside the build folder, where it was
// installed, or in the current folder.
#pragma once

// A model folder by its full path, found once; NULL when there is none. Static memory.
const char *sample_model(void);
