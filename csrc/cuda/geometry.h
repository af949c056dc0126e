// From tensors to grids, views and tiles.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "plan.h"

namespace ladder_kernels::cuda {

// The grid of the latent that packed parameters q (B, 2C, *S) describe, its elements in the order of `channels_last`.
// Space is not collapsed yet.
Grid grid_of(const at::Tensor& q, bool channels_last);

// Views whose space is not collapsed yet: of packed parameters or a latent; of values (B,), (B, C) and (B, *S). A batch
// of 1 is shared by all samples.
View packed_view(const at::Tensor& packed, const Grid& grid);
View latent_view(const at::Tensor& latent, const Grid& grid);
View sample_view(const at::Tensor& values, const Grid& grid);
View channel_view(const at::Tensor& values, const Grid& grid);
View space_view(const at::Tensor& values, const Grid& grid);

// Merges neighbouring dims of space wherever all of `views`, which are all there are, allow it.
void collapse_space(Grid& grid, std::initializer_list<View*> views);

// Whether all of `views` that are there can be read and written in sixteen-byte words; prepares them for that.
bool take_vectors(const Grid& grid, std::initializer_list<View*> views);

// `width` columns a thread and at most `max_steps` rows.
Tiles tiles_of(const Grid& grid, int width, int max_steps);

}  // namespace ladder_kernels::cuda
