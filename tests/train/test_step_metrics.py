"""Metrics of a step, as they are in `metrics.jsonl`."""

from calumma.train.step_metrics import StepMetrics


def test_metrics_are_flat_and_without_missing_values() -> None:
    metrics = StepMetrics(loss=2.0, grad_norm=0.5, grad_norms={"attention": 0.25}, extra={"loss_l1": 1.0})
    assert metrics.to_dict() == {
        "loss": 2.0,
        "grad_norm": 0.5,
        "grad_norm_attention": 0.25,
        "loss_l1": 1.0,
        "stage": 1,
        "step_skipped": 0,
    }
