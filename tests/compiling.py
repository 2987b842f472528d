"""XLA options for tests: they compile quickly, because each program runs only a few times."""

# No optimizations, and small programs are not split for compilation by several threads.
QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)
