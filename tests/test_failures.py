"""What a failed command prints, and its exit status."""

from infini_jax import failures


def test_errors_of_the_machine_are_one_line_and_bugs_are_a_traceback(capsys):
  for error, said in (
    (
      PermissionError(13, "Permission denied", "runs/a"),
      "train: runs/a: Permission denied; choose",
    ),
    (OSError(28, "No space left on device"), "No space left on device; make room there"),
    (ValueError("attention='splash': it needs a TPU"), "config.run.attention='splash': it needs"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9"), "infini-jax plan says what"),
  ):
    assert failures.status_of("train", error) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1, line
  for error, said in (
    (OSError(5, "Input/output error", "runs/a"), "runs/a: Input/output error; does its file"),
    (TimeoutError("batch 7 was not read"), "train: batch 7 was not read"),
  ):
    assert failures.status_of("train", error) == 1, "another start may succeed"
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1, line
  assert failures.status_of("train", RuntimeError("a fault")) == 1
  assert "RuntimeError: a fault" in capsys.readouterr().err
