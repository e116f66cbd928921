"""What keeps a codebook alive: means, revival, first values, statistics."""

import pytest
import torch

from calumma.errors import ConfigError
from calumma.tokens.vq.codebook import (
    CodebookConfig,
    CodebookUpdater,
    VectorQuantizer,
    k_means,
    nearest_codes,
    perplexity,
    sample_far_vectors,
    squared_distances,
    straight_through,
)
from calumma.train.distributed import SINGLE_PROCESS


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def codebook_of(values: list[float], **fields: object) -> tuple[VectorQuantizer, CodebookUpdater]:
    """Return a codebook of one column and its updater."""
    quantizer = VectorQuantizer(len(values), 1)
    quantizer.codebook.data.copy_(torch.tensor(values)[:, None])
    return quantizer, CodebookUpdater(CodebookConfig(**fields), quantizer, SINGLE_PROCESS)  # type: ignore[arg-type]


def update(quantizer: VectorQuantizer, updater: CodebookUpdater, values: list[float]) -> int:
    vectors = torch.tensor(values)[:, None]
    return updater.update(quantizer, vectors, nearest_codes(vectors, quantizer.codebook), seeded())


def test_a_running_mean_moves_by_its_share() -> None:
    quantizer, updater = codebook_of([0.0, 10.0], update="ema", decay=0.5)
    update(quantizer, updater, [1.0, 3.0])
    # code 0: size 0.5 * 1 + 0.5 * 2 = 1.5, sum 0.5 * 0 + 0.5 * 4 = 2; code 1 was not seen
    assert quantizer.codebook[:, 0].tolist() == pytest.approx([2.0 / 1.5, 10.0])


def test_a_codebook_of_means_is_not_the_optimizers() -> None:
    quantizer, _ = codebook_of([0.0], update="ema")
    assert not quantizer.codebook.requires_grad
    quantizer, _ = codebook_of([0.0], update="gradient")
    assert quantizer.codebook.requires_grad


def test_a_code_unused_for_long_moves_to_where_it_is_missed() -> None:
    quantizer, updater = codebook_of([0.0, 100.0], update="ema", decay=0.9, dead_code_restart_steps=2)
    assert update(quantizer, updater, [0.0, 0.0, 7.0]) == 0
    assert update(quantizer, updater, [0.0, 0.0, 7.0]) == 1
    assert quantizer.codebook[1].item() == 7.0
    assert updater.unused_steps.tolist() == [0, 0]


def test_without_a_number_of_steps_no_code_is_moved() -> None:
    quantizer, updater = codebook_of([0.0, 100.0])
    assert sum(update(quantizer, updater, [0.0]) for _ in range(5)) == 0
    assert updater.unused_steps.tolist() == [0, 5]


def test_k_means_finds_clusters_that_lie_apart() -> None:
    centers = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    noise = torch.randn(25, 4, 2, generator=seeded())
    found = k_means((centers + noise).flatten(0, 1), 4, seeded())
    gaps = torch.cdist(centers, found).amin(1)
    assert gaps.max() < 1.0


def test_k_means_of_few_vectors_still_gives_every_code_a_row() -> None:
    found = k_means(torch.tensor([[1.0], [2.0]]), 5, seeded())
    assert found.shape == (5, 1) and bool(found.isfinite().all())


def test_vectors_are_drawn_from_afar() -> None:
    vectors = torch.cat([torch.zeros(99, 1), torch.full((1, 1), 5.0)])
    assert sample_far_vectors(vectors, torch.zeros(1, 1), 1, seeded()).item() == 5.0


def test_the_same_generator_gives_the_same_codebook() -> None:
    vectors = torch.randn(64, 3, generator=seeded())
    assert torch.equal(k_means(vectors, 8, seeded()), k_means(vectors, 8, seeded()))


def test_cosine_rows_stay_on_their_sphere() -> None:
    quantizer = VectorQuantizer(2, 2)
    quantizer.codebook.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    config = CodebookConfig(quantizer="cosine", update="ema", decay=0.5)
    updater = CodebookUpdater(config, quantizer, SINGLE_PROCESS)
    updater.update(quantizer, torch.tensor([[2.0, 0.0]]), torch.tensor([1]), seeded())
    # the second: sums (1, 0.5), put back to a length of sqrt(2)
    assert quantizer.codebook.square().sum(1).tolist() == pytest.approx([2.0, 2.0])
    assert (quantizer.codebook[1, 0] / quantizer.codebook[1, 1]).item() == pytest.approx(2.0)


def test_statistics_see_which_codes_are_used() -> None:
    quantizer, updater = codebook_of([0.0, 10.0, 20.0, 30.0])
    assert updater.usage == 1.0 and updater.perplexity == pytest.approx(4.0)
    for _ in range(1000):
        update(quantizer, updater, [0.0, 10.0])
    assert updater.usage == 0.5 and updater.perplexity == pytest.approx(2.0, abs=0.01)


def test_perplexity_counts_even_use() -> None:
    assert perplexity(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3.0)


def test_beta_weighs_the_codebooks_loss_in_the_release_and_the_encoders_elsewhere() -> None:
    assert CodebookConfig(beta=0.25).loss_weights == (1.0, 0.25)
    assert CodebookConfig(beta=0.25, legacy=False).loss_weights == (0.25, 1.0)
    assert CodebookConfig(beta=0.25, legacy=False, update="ema").loss_weights == (0.25, 0.0)


REFUSALS = {
    "update": ({"update": "k"}, 'codebook.update=\'k\' is unknown; expected "gradient" or "ema".'),
    "decay": ({"decay": 1.0}, "codebook.decay=1.0; expected between 0 and 1, such as 0.99."),
    "beta": ({"beta": -1.0}, "codebook.beta=-1.0; expected 0 or more, such as 0.25."),
    "quantizer": (
        {"quantizer": "fsq"},
        'codebook.quantizer=\'fsq\' is unknown; expected "nearest", "cosine" or "ibq".',
    ),
    "means of ibq": (
        {"quantizer": "ibq", "update": "ema"},
        'codebook.update=\'ema\' with codebook.quantizer="ibq"; expected codebook.update="gradient".',
    ),
    "temperature": (
        {"quantizer": "ibq", "entropy_temperature": 0.0},
        "codebook.entropy_weight=0.0 and codebook.entropy_temperature=0.0; expected a weight of 0 "
        "or more, and a temperature above 0.",
    ),
    "entropy": (
        {"entropy_weight": 0.1},
        "codebook.entropy_weight=0.1 with codebook.quantizer='nearest'; expected "
        'codebook.quantizer="ibq", or a weight of 0.',
    ),
    "restart": (
        {"dead_code_restart_steps": -1},
        "codebook.dead_code_restart_steps=-1; expected a number of steps, or 0 for never.",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CodebookConfig(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == message


LINE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [2.0, 0.0]])


def test_distances_are_squared_and_euclidean() -> None:
    assert squared_distances(torch.tensor([[1.0, 2.0]]), LINE).tolist() == [[5.0, 5.0, 13.0, 5.0]]


def test_the_nearest_code_is_taken_and_ties_go_to_the_lower() -> None:
    vectors = torch.tensor([[0.9, 0.0], [1.0, 3.0], [2.1, 0.0], [9.0, 9.0]])
    assert nearest_codes(vectors, LINE).tolist() == [0, 0, 1, 2]


def test_codes_and_their_vectors_keep_the_places_of_the_cells() -> None:
    quantizer = VectorQuantizer(4, 2)
    quantizer.codebook.data.copy_(LINE)
    latents = torch.tensor([[0.0, 4.1], [2.2, 0.3]]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    latents[:, 1] = 0.0
    codes = quantizer.quantize(latents)
    assert codes.tolist() == [[[0, 2], [1, 0]]]
    assert quantizer.embed(codes)[0, 0].tolist() == [[0.0, 4.0], [2.0, 0.0]]


def test_gradients_pass_straight_through() -> None:
    latents = torch.tensor([1.0, 2.0], requires_grad=True)
    through = straight_through(latents, torch.tensor([5.0, 7.0]))
    assert through.tolist() == [5.0, 7.0]
    through.backward(torch.tensor([3.0, 4.0]))
    assert latents.grad is not None and latents.grad.tolist() == [3.0, 4.0]
