"""XLA options for tests: they compile quickly, because each program runs only a few times."""

# No optimizations, and small programs are not split for compilation by several threads.
QUICKLY = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)


def with_eight_devices(given: str, options: str) -> str:
  """XLA_FLAGS for eight CPU devices and `options`, in addition to the flags that are `given`.

  No flag is repeated, because a kept program has a name that depends on the flags.
  """
  flags = ["--xla_force_host_platform_device_count=8", *options.split()]
  return " ".join([*given.split(), *(flag for flag in flags if flag not in given.split())])
