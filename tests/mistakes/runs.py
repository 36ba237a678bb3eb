"""Run folders and output files, runs that are stopped or fail, what is checked afterwards."""

import fcntl
import os

from tests.mistakes.bench import PAIRS, ROWS, RUN, Bench, Case, flip


def with_file(name: str, content: str, then: Case) -> Case:
    """A file that is in the way."""

    def make(b: Bench) -> list[str]:
        b.file(name, content)
        return then(b)

    return make


def finished(b: Bench) -> list[str]:
    args = b.sft()
    b.ran(args)
    return args


def locked(b: Bench) -> list[str]:
    (b.folder / RUN).mkdir()
    lock = os.open(b.folder / RUN / "lock", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    b.after.append(lambda: os.close(lock))
    return b.sft()


def other_stage(b: Bench) -> list[str]:
    b.stopped()
    return b.train("dpo", b.rows(PAIRS, "pairs.jsonl"))


def other_data(b: Bench) -> list[str]:
    args = b.stopped()
    b.rows(ROWS[:3])
    return args


def spoilt(file: str, content: str | None) -> Case:
    """A stopped run with another content of one of its files, or without it."""

    def make(b: Bench) -> list[str]:
        args = b.stopped()
        (b.folder / RUN / file).unlink()
        if content is not None:
            b.file(f"{RUN}/{file}", content)
        return args

    return make


def damaged(b: Bench) -> list[str]:
    args = b.stopped()
    flip(b.folder / RUN / "checkpoints" / "step-00000003" / "state.safetensors")
    return args


def changed(name: str) -> Case:
    """A finished run of which a byte is another now."""

    def make(b: Bench) -> list[str]:
        finished(b)
        flip(b.folder / RUN / name)
        return ["verify", RUN]

    return make


def rows_lost(b: Bench) -> list[str]:
    finished(b)
    (b.folder / "rows.jsonl").unlink()
    return ["verify", RUN]


def checked(b: Bench) -> list[str]:
    finished(b)
    return ["verify", RUN]


def interrupted(b: Bench) -> list[str]:
    b.interrupt(2)
    return b.sft("--max-steps", 4)


def full(size: int, *more: object) -> Case:
    def make(b: Bench) -> list[str]:
        args = b.sft(*more)
        b.limit(size)
        return args

    return make


def into_a_folder(b: Bench) -> list[str]:
    (b.folder / "out").mkdir()
    rows = b.rows(PAIRS)
    return ["reward-bench", "length", "--dataset-name", rows, "--output-file", "out"]


def full_of_samples(b: Bench) -> list[str]:
    words = b.sample("--num-generations", 9)
    b.limit(1000)
    return words


CASES: dict[str, Case] = {
    "control-sft": lambda b: b.sft(),
    "control-sample": lambda b: b.sample(),
    "control-resume": lambda b: b.stopped(),
    "control-verify": checked,
    "run-folder-is-a-file": with_file(RUN, "notes\n", lambda b: b.sft()),
    "run-folder-under-a-file": with_file("notes", "mine\n", lambda b: b.sft(to="notes/run")),
    "run-folder-of-other-files": with_file(f"{RUN}/notes.txt", "mine\n", lambda b: b.sft()),
    "run-finished": finished,
    "run-in-use": locked,
    "run-of-another-stage": other_stage,
    "run-with-other-settings": lambda b: [*b.stopped(), "--seed", "3"],
    "run-with-other-data": other_data,
    "run-with-other-weights": lambda b: [*b.stopped(), "--use-peft", "--force-resume"],
    "checkpoint-damaged": damaged,
    "run-json-damaged": spoilt("run.json", '{"stage": "sft", "stat'),
    "run-json-of-something-else": spoilt("run.json", "[1, 2]\n"),
    "run-settings-lost": spoilt("config.yaml", None),
    "run-settings-damaged": spoilt("config.yaml", "seed: ["),
    "quickstart-in-a-full-folder": with_file(
        f"{RUN}/notes.txt", "mine\n", lambda b: ["quickstart", "--output-dir", RUN]
    ),
    "verify-model-changed": changed("model/model.safetensors"),
    "verify-metrics-changed": changed("metrics.jsonl"),
    "verify-rows-lost": rows_lost,
    "verify-no-run": lambda b: ["verify", RUN],
    "output-name": lambda b: b.sample(to="out.txt"),
    "output-under-a-file": with_file("notes", "mine\n", lambda b: b.sample(to="notes/out.jsonl")),
    "output-is-a-folder": into_a_folder,
    "stopped": interrupted,
    "diverged": lambda b: b.sft(
        *("--learning-rate", "1e30", "--max-grad-norm", 0, "--max-steps", 6, "--save-steps", 1)
    ),
    "guard": lambda b: b.sft("--guard-grad-norm", "1e-6", "--guard-action", "stop"),
    "quickstart-in-a-file": lambda b: ["quickstart", "--output-dir", b.file("q", "x")],
    "disk-full-at-the-samples": full_of_samples,
    "disk-full-at-the-start": full(100),
    "disk-full-at-a-checkpoint": full(20_000, "--save-steps", 1),
    "disk-full-at-the-model": full(20_000),
}
