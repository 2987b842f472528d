"""Whether a config fits a mesh and how fast it can be: estimated and compiled without hardware."""
