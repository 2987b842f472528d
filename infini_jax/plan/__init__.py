"""Will it fit, how fast can it be: a config laid on a mesh, estimated and compiled, no hardware."""
