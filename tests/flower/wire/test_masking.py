"""A secure sum in Flower's records: real messages, real contexts, and no update to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_vitlora.communication.packing import HEADER, Layout, pack
from fl_vitlora.flower.wire import masking, messages
from fl_vitlora.flower.wire.opened_sum import open_sum
from fl_vitlora.privacy.noise import bounded, mean_update, released
from fl_vitlora.privacy.secure_sum import Roster, Seeds, Words, add_up
from fl_vitlora.rng import generator
from fl_vitlora.state import State, scale
from fl_vitlora.strategy import Update

LAYOUT = Layout((("head.weight", (3, 4)), ("head.bias", (3,))))
SAMPLES = {0: 40, 1: 30, 2: 20, 4: 10}
STEPS = {client: samples // 5 for client, samples in SAMPLES.items()}
LIMIT = 4.0


def state(seed: int) -> State:
    chance = generator(seed, "masking")
    return {name: torch.randn(shape, generator=chance) * 0.1 for name, shape in LAYOUT.shapes}


UPDATES = {
    client: Update(
        client=client,
        samples=samples,
        loss=1.0 + client,
        delta=state(client),
        report=state(10 + client),
        steps=STEPS[client],
        population=7,
    )
    for client, samples in SAMPLES.items()
}


def data_of(reply: RecordDict) -> bytes:
    return reply.array_records[messages.ARRAYS][messages.PACKED].data


def greet(context: Context, client: int) -> RecordDict:
    return RecordDict({masking.RECORD: masking.introduce(context, client)})


class Wire:
    """Clients with their contexts, and the server's side of a few rounds."""

    def __init__(self) -> None:
        self.contexts = {c: Context(1, c, {}, RecordDict(), {}) for c in SAMPLES}
        self.keys = {
            client: masking.read_key(greet(context, client))
            for client, context in self.contexts.items()
        }

    def roster(
        self, server_round: int, weights: Mapping[int, float] = SAMPLES, limit: float = LIMIT
    ) -> Roster:
        return masking.make_roster(server_round, self.keys, weights, limit)

    def hide(self, client: int, roster: Roster, update: Update, limit: float = LIMIT) -> RecordDict:
        instruction = RecordDict({masking.RECORD: masking.write_roster(roster)})
        context = self.contexts[client]
        hidden = masking.hide(
            context, instruction, update.delta, update.report, update.loss, limit=limit
        )
        return RecordDict({messages.ARRAYS: hidden})

    def ask(self, roster: Roster) -> Callable[..., Mapping[int, Seeds]]:
        def ask(left: frozenset[int], dropped: frozenset[int]) -> Mapping[int, Seeds]:
            answers = {}
            for client in left:
                question = Message(
                    masking.ask_for_seeds(roster, dropped),
                    dst_node_id=client,
                    message_type=masking.REVEAL,
                )
                answer = masking.answer(question, self.contexts[client])
                answers[client] = masking.read_seeds(answer.content)
            return answers

        return ask

    def sum_up(
        self,
        server_round: int,
        *,
        dropped: frozenset[int] = frozenset(),
        updates: Mapping[int, Update] = UPDATES,
        weights: Mapping[int, float] = SAMPLES,
    ) -> Update:
        roster = self.roster(server_round, weights)
        masked: dict[int, Words] = {}
        for client, update in updates.items():
            reply = self.hide(client, roster, update)
            if client not in dropped:
                masked[client] = masking.read_masked(reply, LAYOUT)
        total, left = add_up(roster, masked, self.ask(roster))
        summed, clipped = open_sum(
            total,
            roster,
            LAYOUT,
            samples={client: SAMPLES[client] for client in left},
            steps={client: STEPS[client] for client in left},
            population=7,
        )
        assert clipped == 0
        return summed


def close(found: Update, expected: Update) -> None:
    for part in ("delta", "report"):
        assert Layout.of(getattr(found, part)) == Layout.of(getattr(expected, part))
        for name, tensor in getattr(expected, part).items():
            torch.testing.assert_close(
                getattr(found, part)[name], tensor, rtol=1e-6, atol=1e-7, msg=name
            )
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    for part in ("client", "samples", "steps", "members", "population", "rank"):
        assert getattr(found, part) == getattr(expected, part), part


@pytest.mark.parametrize("dropped", [set(), {1}, {0, 4}])
def test_a_secure_sum_is_the_mean_that_it_would_be_in_the_open(dropped: set[int]):
    left = [update for client, update in UPDATES.items() if client not in dropped]
    expected = mean_update(left, [update.samples for update in left])
    close(Wire().sum_up(1, dropped=frozenset(dropped)), expected)


def test_rounds_follow_each_other_with_others_taking_part():
    wire = Wire()
    for server_round, chosen in ((1, (0, 1, 2)), (2, (1, 2, 4)), (5, (0, 1, 2, 4))):
        some = {client: UPDATES[client] for client in chosen}
        dropped = frozenset(chosen[:1])
        found = wire.sum_up(
            server_round,
            updates=some,
            weights={client: SAMPLES[client] for client in chosen},
            dropped=dropped,
        )
        left = [UPDATES[client] for client in chosen if client not in dropped]
        close(found, mean_update(left, [update.samples for update in left]))


def test_other_keys_give_the_same_bits():
    one, other = Wire(), Wire()
    assert one.keys != other.keys
    first, second = one.sum_up(1), other.sum_up(1)
    for name, tensor in first.delta.items():
        assert torch.equal(tensor, second.delta[name])
    assert first.loss == second.loss


def test_it_goes_together_with_differential_privacy():
    """Bounded by the clients, summed with equal weights, made noisy by the server."""
    private = {}
    for client, update in UPDATES.items():
        delta, report, _ = bounded(update.delta, update.report, 0.3)
        private[client] = Update(
            client=client, samples=update.samples, loss=update.loss, delta=delta, report=report
        )
    uniform = dict.fromkeys(private, 1.0)
    summed = Wire().sum_up(1, updates=private, weights=uniform, dropped=frozenset({1}))
    left = [update for client, update in private.items() if client != 1]
    terms = {"cohort": 4, "clipping_norm": 0.3, "noise_multiplier": 2.0, "key": bytes(32)}
    found = released(summed, **terms)  # type: ignore[arg-type]
    expected = released(mean_update(left, [1.0] * 3), **terms)  # type: ignore[arg-type]
    for name, tensor in expected.delta.items():
        torch.testing.assert_close(found.delta[name], tensor, rtol=1e-5, atol=1e-7)


# what is on the wire


def test_no_message_holds_an_update_or_a_private_key():
    wire = Wire()
    roster = wire.roster(1)
    reply = wire.hide(0, roster, UPDATES[0])
    sent = data_of(reply)
    for tensor in UPDATES[0].delta.values():
        assert tensor.numpy().tobytes() not in sent
    private = wire.contexts[0].state.config_records[masking.RECORD][masking.PRIVATE]
    assert isinstance(private, bytes)
    assert private not in sent
    told = (masking.write_roster(roster), masking.ask_for_seeds(roster, frozenset({4})))
    assert not [content for content in told if private in repr(content).encode()]
    assert repr(private) not in repr(told)


def test_a_masked_message_is_as_long_as_an_open_one_and_two_words():
    open_bytes = sum(len(pack(part)) for part in (UPDATES[0].delta, UPDATES[0].report))
    wire = Wire()
    reply = wire.hide(0, wire.roster(1), UPDATES[0])
    assert len(data_of(reply)) == open_bytes - HEADER.size + 8


def test_a_client_refuses_another_range_than_its_own():
    wire = Wire()
    with pytest.raises(ValueError, match=r"the server sums in a range of 8, .* a range of 4"):
        wire.hide(0, wire.roster(1, limit=8.0), UPDATES[0])


def test_clipped_scalars_are_counted_together():
    wire = Wire()
    roster = wire.roster(1, limit=0.05)
    masked = {
        client: masking.read_masked(wire.hide(client, roster, update, limit=0.05), LAYOUT)
        for client, update in UPDATES.items()
    }
    total, _ = add_up(roster, masked, wire.ask(roster))
    _, clipped = open_sum(total, roster, LAYOUT, samples=SAMPLES, steps=STEPS, population=7)
    large = [
        int((tensor.abs() > 0.05).sum())
        for update in UPDATES.values()
        for state in (update.delta, update.report)
        for tensor in state.values()
    ]
    assert clipped == sum(large) > 0


# what is refused


def test_a_client_sends_nothing_without_a_roster():
    wire = Wire()
    with pytest.raises(ValueError, match="its record of the secure sum is missing"):
        masking.hide(wire.contexts[0], RecordDict(), state(0), {}, 1.0, limit=LIMIT)


def test_a_client_that_was_not_greeted_has_no_keys():
    roster = Wire().roster(1)
    instruction = RecordDict({masking.RECORD: masking.write_roster(roster)})
    stranger = Context(1, 0, {}, RecordDict(), {})
    with pytest.raises(ValueError, match="was not greeted"):
        masking.hide(stranger, instruction, state(0), {}, 1.0, limit=LIMIT)


def test_a_client_remembers_in_its_context_what_it_has_masked_and_revealed():
    wire = Wire()
    roster = wire.roster(3)
    wire.hide(0, roster, UPDATES[0])
    with pytest.raises(ValueError, match="already masked a vector for round"):
        wire.hide(0, roster, UPDATES[0])
    wire.ask(roster)(frozenset({0}), frozenset({4}))
    with pytest.raises(ValueError, match="that dropped out of a sum cannot come back"):
        wire.ask(roster)(frozenset({0}), frozenset({2}))


def test_an_update_that_was_not_finite_leaves_the_masks_unused():
    wire = Wire()
    roster = wire.roster(1)
    spoilt = Update(client=0, samples=1, loss=1.0, delta=scale(state(0), float("nan")))
    with pytest.raises(ValueError, match="NaN"):
        wire.hide(0, roster, spoilt)
    wire.hide(0, roster, UPDATES[0])


def test_a_second_greeting_brings_the_keys_of_the_first():
    wire = Wire()
    again = masking.read_key(greet(wire.contexts[0], 0))
    assert again == wire.keys[0]


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({messages.ARRAYS: messages.to_packed(state(0))}),
        RecordDict({"other": messages.to_packed(state(0))}),
    ],
    ids=["nothing", "an open update", "another record"],
)
def test_what_is_not_masked_is_refused(content: RecordDict):
    with pytest.raises(ValueError, match="contains no masked words"):
        masking.read_masked(content, LAYOUT)


def test_incomplete_records_are_refused_by_the_name_of_what_is_missing():
    empty = RecordDict({masking.RECORD: ConfigRecord({})})
    for read, lacking in (
        (masking.read_key, "public-key"),
        (masking.read_roster, "clients"),
        (masking.read_seeds, "clients"),
    ):
        with pytest.raises(ValueError, match=f"lacks '{lacking}'"):
            read(empty)
        with pytest.raises(ValueError, match="record of the secure sum is missing"):
            read(RecordDict())


def test_a_sum_whose_masks_have_not_cancelled_is_refused():
    """It happens if clients were told different things, or built different models."""
    wire = Wire()
    roster = wire.roster(1)
    replies = {
        client: masking.hide(
            wire.contexts[client],
            RecordDict({masking.RECORD: masking.write_roster(roster)}),
            update.delta,
            update.report,
            update.loss,
            limit=LIMIT,
            told=bytes([client]),
        )
        for client, update in UPDATES.items()
    }
    masked = {
        client: masking.read_masked(RecordDict({messages.ARRAYS: reply}), LAYOUT)
        for client, reply in replies.items()
    }
    total, left = add_up(roster, masked, wire.ask(roster))
    with pytest.raises(ValueError, match="round 1 did not cancel, because clients got different"):
        open_sum(
            total,
            roster,
            LAYOUT,
            samples={client: SAMPLES[client] for client in left},
            steps={client: UPDATES[client].steps for client in left},
            population=len(UPDATES),
        )
