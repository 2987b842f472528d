"""How programs are compiled in tests: quickly, for each runs a few times at most."""

# Nothing is optimized, and a small program is not cut up to be compiled by several threads.
QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)
