"""Coordinates of a patch embedding: what goes in comes out, and nonsense is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from fl_vitlora.adaptation import policies
from fl_vitlora.adaptation.coordinates import Coordinates, of_party, server_reader
from fl_vitlora.config import Config
from fl_vitlora.data.owner import key_holder
from fl_vitlora.encryption.holder import TEST, KeyHolder, client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.models.reading import POSITION, WEIGHT, exchanged_reader
from fl_vitlora.rng import generator
from fl_vitlora.state import State, add, subtract
from tests.combinations import POLICIES, SCOPES, allowed, configure

SECRET = bytes(range(32))
BIAS, HEAD = "patch_embed.proj.bias", "head.weight"
PATCHES, WIDTH = 6, 5
PARTIES = (client_party(0), client_party(3), TEST)


ALL = [
    configure(scope, adapt=adapt, policy=policy, encryption__steps=steps, finetuning__method=method)
    for scope, adapt, policy, steps, method in product(
        SCOPES,
        (False, True),
        POLICIES,
        ("ViT-blockwise", "EtC", "PE", []),
        ("lora+patch_embed", "full", "lora"),
    )
]
MEANINGLESS = configure("client", adapt=True, encryption__allow_meaningless=True)


def name_of(config: Config) -> str:
    encryption, tuning = config.encryption, config.finetuning
    adapted = "adapted" if encryption.adapt else "not"
    steps = "+".join(step[:7] for step in encryption.steps) or "plain"
    return f"{encryption.scope}-{adapted}-{tuning.patch_embedding}-{steps}-{tuning.method}"


COMBINATIONS = pytest.mark.parametrize(
    "config",
    [*filter(allowed, ALL), MEANINGLESS, replace(MEANINGLESS, finetuning=ALL[1].finetuning)],
    ids=name_of,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "tensor"), dtype=torch.float64)


def holder_of(config: Config) -> KeyHolder:
    """Images of 2 by 3 patches of 2 by 2 pixels."""
    return key_holder(config, patch_size=2, image_shape=(3, 4, 6), secret=SECRET)


ORIGIN = PatchReader(weight=random(WIDTH, 12), position=random(PATCHES, WIDTH, seed=1))


class Setting:
    """A server with a model of its own, and the parties' coordinates."""

    def __init__(self, config: Config) -> None:
        self.config, self.holder = config, holder_of(config)
        self.start = server_reader(config, ORIGIN, self.holder)
        assert self.start.position is not None
        kernels = self.start.weight if self.start.weight.ndim == 3 else None
        shaped = self.start.weight.view(WIDTH, 3, 2, 2) if kernels is None else kernels.clone()
        tensors = {WEIGHT: shaped, BIAS: random(WIDTH, seed=2), HEAD: random(3, WIDTH, seed=3)}
        if config.finetuning.method == "full":
            class_token = random(1, 1, WIDTH, seed=4)
            tensors[POSITION] = torch.cat([class_token, self.start.position[None]], dim=1)
        if config.finetuning.method == "lora":
            tensors = {HEAD: tensors[HEAD]}
        self.initial: State = tensors
        self.exchanged = policies.exchanged(config, tensors)

    def party(self, party: str, *, keyless: bool = False) -> Coordinates:
        return of_party(
            self.config,
            origin=ORIGIN,
            start=self.start,
            initial=self.initial,
            holder=None if keyless else self.holder,
            party=party,
        )

    def some_delta(self, seed: int = 9) -> State:
        return {name: 0.1 * random(*w.shape, seed=seed) for name, w in self.exchanged.items()}


def same(a: State, b: State, tolerance: float = 0.0) -> bool:
    assert list(a) == list(b)
    assert all(a[name].shape == b[name].shape for name in a)
    return all(float((a[name] - b[name]).abs().max()) <= tolerance for name in a)


@COMBINATIONS
def test_what_a_party_sends_is_what_changed_in_the_servers_coordinates(config: Config):
    """Outward inverts the linear part of to_client, whatever the server's model has become."""
    setting = Setting(config)
    for party in PARTIES:
        turn = setting.party(party)
        now = add(setting.exchanged, setting.some_delta())
        trained = add(now, setting.some_delta(seed=10))
        delta = subtract(turn.to_client(trained), turn.to_client(now))
        assert same(turn.to_server(delta), subtract(trained, now), 1e-13)


@COMBINATIONS
def test_tensors_that_read_no_ciphertext_are_never_turned(config: Config):
    setting = Setting(config)
    turn, now = setting.party(PARTIES[1]), add(setting.exchanged, setting.some_delta())
    for turned in (turn.to_client(now), turn.to_server(now)):
        assert turned.keys() == now.keys()
        for name in (BIAS, HEAD):
            assert name not in now or torch.equal(turned[name], now[name])
        if POSITION in now:
            assert torch.equal(turned[POSITION][:, 0], now[POSITION][:, 0])


@COMBINATIONS
def test_where_nothing_is_to_be_turned_the_same_tensors_come_back(config: Config):
    setting = Setting(config)
    own = config.encryption.adapt and not policies.common_key(config)
    turned = policies.aligns(config) or (own and policies.exchanges_reader(config))
    now = add(setting.exchanged, setting.some_delta())
    for party in PARTIES:
        turn = setting.party(party)
        assert (turn.to_client(now) is now) == (not turned)
        assert (turn.to_server(now) is now) == (not policies.aligns(config))


@COMBINATIONS
def test_given_tensors_are_left_as_they_are(config: Config):
    setting = Setting(config)
    now = add(setting.exchanged, setting.some_delta())
    before = {name: tensor.clone() for name, tensor in now.items()}
    turn = setting.party(PARTIES[0])
    turn.to_client(now)
    turn.to_server(now)
    assert same(now, before)


def reader(state: State) -> PatchReader:
    return exchanged_reader(state, PATCHES)


def close(a: PatchReader, b: PatchReader) -> bool:
    return torch.allclose(
        a.weight_of_blocks(PATCHES), b.weight_of_blocks(PATCHES), atol=1e-13, rtol=0
    )


@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC", "PE"])
@pytest.mark.parametrize("scope", ["shared", "client", "block"])
def test_aligned_and_adapted_a_party_reads_with_the_adapted_model(scope: str, steps: str):
    """T(E), whatever E: the server's is that of plain images."""
    setting = Setting(configure(scope, adapt=True, policy="aligned", encryption__steps=steps))
    assert close(setting.start, ORIGIN)
    now = add(setting.exchanged, setting.some_delta())
    for party in PARTIES:
        turn, adapted = setting.party(party), setting.holder.adapt(reader(now), party)
        assert close(turn.base, setting.holder.adapt(ORIGIN, party))
        assert close(reader(turn.to_client(now)), adapted)
        assert not close(reader(turn.to_client(now)), reader(now))


@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC", "PE"])
@pytest.mark.parametrize("scope", ["shared", "client", "block"])
def test_aligned_and_not_adapted_only_what_was_learnt_is_turned(scope: str, steps: str):
    """E₀ + T(E - E₀), and so E₀ itself at first."""
    setting = Setting(configure(scope, policy="aligned", encryption__steps=steps))
    assert close(setting.start, ORIGIN)
    delta = setting.some_delta()
    for party in PARTIES:
        turn, learnt = setting.party(party), setting.holder.adapt(reader(delta), party)
        assert close(turn.base, ORIGIN)
        assert same(turn.to_client(setting.exchanged), setting.exchanged)
        expected = ORIGIN.weight_of_blocks(PATCHES) + learnt.weight_of_blocks(PATCHES)
        found = reader(turn.to_client(add(setting.exchanged, delta)))
        assert torch.allclose(found.weight_of_blocks(PATCHES), expected, atol=1e-13, rtol=0)


def test_aligned_parties_with_keys_of_their_own_differ_and_send_the_same():
    """A change made in plain coordinates, seen by each party, is sent back as the same change."""
    setting = Setting(configure("client", adapt=True, policy="aligned"))
    delta, before = setting.some_delta(), setting.exchanged
    seen, sent = [], []
    for party in PARTIES:
        turn = setting.party(party)
        own = subtract(turn.to_client(add(before, delta)), turn.to_client(before))
        seen.append(own[WEIGHT])
        sent.append(turn.to_server(own))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert all(same(one, delta, 1e-13) for one in sent)


@pytest.mark.parametrize("policy", ["aggregate", "local"])
@pytest.mark.parametrize("scope", ["shared", "block"])
def test_with_one_key_for_all_the_server_has_the_adapted_model(scope: str, policy: str):
    setting = Setting(configure(scope, adapt=True, policy=policy))
    adapted = setting.holder.adapt(ORIGIN, "anybody")
    assert close(setting.start, adapted)
    assert all(close(setting.party(party).base, adapted) for party in PARTIES)
    assert all(close(setting.party(party, keyless=True).base, adapted) for party in PARTIES)


@pytest.mark.parametrize("method", ["lora+patch_embed", "full", "lora"])
def test_with_a_key_for_each_client_the_server_has_the_public_model(method: str):
    config = configure("client", adapt=True, policy="local", finetuning__method=method)
    setting = Setting(config)
    assert close(setting.start, ORIGIN)
    bases = [setting.party(party).base for party in PARTIES]
    for base, party in zip(bases, PARTIES, strict=True):
        assert close(base, setting.holder.adapt(ORIGIN, party))
    assert not close(bases[0], bases[1])


def test_what_means_nothing_is_the_adapted_start_and_everybodys_sum():
    """T(E₀) + (E - E₀): to be seen, not to be used."""
    setting = Setting(MEANINGLESS)
    delta = setting.some_delta()
    for party in PARTIES:
        turn = setting.party(party)
        found = reader(turn.to_client(add(setting.exchanged, delta)))
        expected = setting.holder.adapt(ORIGIN, party).weight + delta[WEIGHT].flatten(1)
        assert torch.allclose(found.weight, expected, atol=1e-13, rtol=0)
        assert turn.to_server(delta) is delta


@pytest.mark.parametrize("scope", SCOPES)
def test_without_adaptation_or_alignment_everybody_has_the_public_model(scope: str):
    for policy, steps in product(("aggregate", "local"), ("ViT-blockwise", "LE", "ELE")):
        config = configure(scope, policy=policy, encryption__steps=steps, encryption__block_size=2)
        setting = Setting(config)
        assert setting.start is ORIGIN
        assert all(setting.party(party, keyless=True).base is ORIGIN for party in PARTIES)


@pytest.mark.parametrize("adapt", [False, True])
def test_nibble_steps_are_refused_wherever_a_reader_would_be_turned(adapt: bool):
    policy = "aggregate" if adapt else "aligned"
    config = configure(adapt=adapt, policy=policy, encryption__steps="LE")
    config = replace(config, encryption=replace(config.encryption, block_size=2))
    with pytest.raises(UserError, match="no key adaptation"):
        server_reader(config, ORIGIN, holder_of(config))


def test_learnt_differences_are_aligned_where_a_model_adds_no_positions():
    """Scrambled places mean nothing to such a model, but the entries of its patches do."""
    config = configure("client", policy="aligned")
    placeless = replace(ORIGIN, position=None)
    assert server_reader(config, placeless, holder_of(config)) is placeless
    adapted = configure("client", adapt=True, policy="aligned")
    with pytest.raises(UserError, match="block scrambling has no key adaptation"):
        server_reader(adapted, placeless, holder_of(adapted))


@pytest.mark.parametrize(
    "config",
    [
        configure("shared", adapt=True, policy="aligned"),
        configure("shared", policy="aligned"),
        configure("client", adapt=True, policy="local"),
        MEANINGLESS,
    ],
    ids=name_of,
)
def test_who_must_turn_its_reader_needs_a_key_ring(config: Config):
    with pytest.raises(UserError, match="client 3 has no key ring, but needs its key to adapt"):
        Setting(config).party(client_party(3), keyless=True)


@pytest.mark.parametrize("method", ["lora+patch_embed", "full"])
def test_what_is_local_is_not_exchanged(method: str):
    config = configure(policy="local", finetuning__method=method)
    setting = Setting(config)
    assert set(setting.exchanged) == {HEAD}
    shared = configure(policy="aggregate", finetuning__method=method)
    assert policies.exchanged(shared, setting.initial) == setting.initial
    untrained = configure(policy="local", finetuning__method="lora")
    assert policies.exchanged(untrained, {HEAD: torch.ones(1)}).keys() == {HEAD}
