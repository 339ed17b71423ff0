// What only the whole configuration can tell, after every file is merged: what is missing, and what excludes what.
#pragma once

#include "config/config.h"
#include "config/load.h"
#include "config/schema.h"

#include <tl/expected.hpp>
#include <vector>

namespace novpn {

/// Puts the default class first where no file names it. An error is where the later of two values is set.
tl::expected<Config, ConfigError> checked(Config config, const Origins& origins);

/// What `checked` takes and is worth a second thought.
std::vector<ConfigError> doubts(const Config& config, const Origins& origins);

} // namespace novpn
