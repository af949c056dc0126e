// From tensors to plans.
#pragma once

#include <initializer_list>

#include "../op.h"
#include "plan.h"

namespace ladder_kernels::cuda {

// Raises for what does not fit. Space is not collapsed yet.
Step step_of(const at::Tensor& q, const OptionalTensor& p, const OptionalTensor& source, const Options& options);

Window window_of(const WindowSides& window, const Grid& grid);

// Views whose space is not collapsed yet: of packed parameters or a latent; of values (B,), (B, C) and (B, *S). A batch
// of 1 is shared by all samples.
View packed_view(const at::Tensor& packed, const Grid& grid);
View latent_view(const at::Tensor& latent, const Grid& grid);
View sample_view(const at::Tensor& values, const Grid& grid);
View channel_view(const at::Tensor& values, const Grid& grid);
View space_view(const at::Tensor& values, const Grid& grid);

// Merges neighbouring dims of space wherever all of `views`, which are all there are, allow it.
void collapse_space(Grid& grid, std::initializer_list<View*> views);

// Whether vector kernels serve: everything can be read and written in sixteen-byte words, in q's dtype or, of noise and
// `in_float`, in float32. Prepares the views for that.
bool take_vectors(Step& step, std::initializer_list<View*> like_q, std::initializer_list<View*> in_float = {});

// `width` columns a thread and at most `most_turns` tiles a block.
Tiles tiles_of(const Grid& grid, int width, int most_turns);

// How much memory `set_partials` shares out, aligned to sixteen bytes.
std::int64_t partials_bytes(const Step& step, const Tiles& tiles);
void set_partials(Forward& call, void* memory);

}  // namespace ladder_kernels::cuda
