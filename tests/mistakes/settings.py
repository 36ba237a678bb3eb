"""Commands, flags and files of settings that are not understood, or ask for what cannot be."""

from tests.mistakes.bench import Case


def words(line: str) -> Case:
    return lambda b: line.split()


def yaml(content: str) -> Case:
    return lambda b: ["sft", "--config", b.file("sft.yaml", content)]


def sft(*more: object) -> Case:
    return lambda b: b.sft(*more)


def ppo(*more: object) -> Case:
    return lambda b: b.online("ppo", *more)


def rloo(*more: object) -> Case:
    return lambda b: b.online("rloo", *more)


CASES: dict[str, Case] = {
    "no-arguments": words(""),
    "command-unknown": words("dop --output-dir run"),
    "flag-unknown": words("dpo --bet 1"),
    "flag-retired": words("dpo --fp16"),
    "flag-retired-online": words("ppo --top-k 5"),
    "flag-twice": words("sft --seed 1 --seed 2"),
    "flag-two-names": ppo("--sft-model-path", "runs/sft"),
    "flag-without-value": words("sft --output-dir"),
    "flag-neither-true-nor-false": words("sft --use-peft=perhaps"),
    "word-too-many": words("sft rows.jsonl"),
    "word-too-few": words("winrate run"),
    "setting-missing": words("sft --output-dir run --model-name-or-path model"),
    "yaml-missing": lambda b: [
        "sft",
        "--config",
        b.file("sft_small.yaml", "seed: 1\n").replace("small", "smal"),
    ],
    "yaml-key-unknown": yaml("learning_rat: 1e-5\n"),
    "yaml-key-retired": yaml("gradient_checkpointing_kwargs: {}\n"),
    "yaml-key-twice": yaml("seed: 1\nseed: 2\n"),
    "yaml-broken": yaml("seed: [1\n"),
    "yaml-list": yaml("- seed\n- 1\n"),
    "yaml-empty": yaml("# nothing yet\n"),
    "yaml-without-value": yaml("output_dir:\nmodel_name_or_path: m\ndataset_name: d\n"),
    "yaml-true-for-a-number": yaml("max_steps: true\n"),
    "value-out-of-range": sft("--learning-rate", "-1e-5"),
    "value-no-number": sft("--seed", "zero"),
    "value-not-finite": sft("--learning-rate", "inf"),
    "value-no-choice": sft("--lr-scheduler-type", "cosin"),
    "setting-without-effect": sft("--lora-r", 8),
    "settings-against-each-other": sft("--warmup-steps", 1, "--warmup-ratio", "0.1"),
    "group-of-one": rloo("--num-generations", 1),
    "group-does-not-divide": rloo("--num-generations", 3),
    "group-of-one-grpo": lambda b: b.online("grpo", "--num-generations", 1),
    "baseline-of-one": lambda b: b.online(
        "reinforce",
        *("--advantage-estimator", "reinforce_plus_plus_baseline", "--num-generations", 1),
    ),
    "kl-that-does-nothing": ppo("--kl-loss-coef", "0.1", "--kl-loss-estimator", "k1"),
    "overlong-buffer-too-long": ppo("--overlong-buffer", 9),
    "setting-of-another-loss": ppo("--scale-rewards", "none"),
    "reward-weights-too-many": ppo("--reward-weights", 1, 2),
    "ptx-without-rows": ppo("--ptx-coef", 1),
    "eval-without-rows": sft("--eval-steps", 1),
    "best-without-rows": sft("--metric-for-best-model", "eval_loss"),
    "best-metric-unknown": sft("--metric-for-best-model", "lss", "--logging-steps", 1),
    "tracker-missing": sft("--report-to", "clearml"),
    "control-dry-run": sft("--dry-run"),
}
