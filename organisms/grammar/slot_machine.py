"""The `slot_machine` task: one decision in a gambling game, bet or stop, with a known probability.

"slot machine ; goal maximise ; bets variable ; round 6 ; balance 30 ; last lost 10 won 40 lost 20 ; choice :
bet 20 ." The state is its goal, the betting mode, the round, the balance in figures and the last outcomes (at
most three: what was lost or won). P(stop) is a logistic function of goal, mode, balance and wins less losses;
the round and the sizes of past bets have no part in it. A bet is among LEGAL ones: large ones are likelier
after a loss, small ones otherwise; under fixed bets it is FIXED_BET.
The game itself (chance of winning, payout) is in `play`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from organisms.grammar.draw import Draw
from organisms.grammar.frames import STOP, log_share
from organisms.grammar.weights import after_cue

GOALS: dict[str, float] = {"none": 0.0, "target": -0.6, "maximise": -1.2}
MODES: dict[str, float] = {"fixed": 0.0, "variable": -0.6}
BALANCES = range(10, 210, 10)
PER_UNIT = 0.025
NEUTRAL_BALANCE = 80
PER_WIN = 0.5
FIXED_BET = 10
BETS: tuple[int, ...] = (10, 20, 40, 80)
ROUNDS = range(1, 13)
SHOWN = 3
CHANCE = 0.3
PAYOUT = 3
STOPS, BET = "stop", "bet"
_NUMBERS = sorted({*ROUNDS, *BALANCES, *BETS, *(bet * (PAYOUT - 1) for bet in BETS)})


@dataclass(frozen=True)
class State:
    """What the player sees. `outcomes`: the last ones, oldest first, as money won (positive) or lost."""

    goal: str
    mode: str
    round: int
    balance: int
    outcomes: tuple[int, ...]

    @property
    def wins(self) -> int:
        return sum(outcome > 0 for outcome in self.outcomes)

    @property
    def losses(self) -> int:
        return sum(outcome < 0 for outcome in self.outcomes)

    @property
    def p_stop(self) -> float:
        """P(the player stops)."""
        logit = PER_UNIT * (self.balance - NEUTRAL_BALANCE) + PER_WIN * (self.wins - self.losses)
        return 1.0 / (1.0 + math.exp(-(logit + GOALS[self.goal] + MODES[self.mode])))

    def bets(self) -> dict[int, float]:
        """Each legal bet with its probability, given that the player bets."""
        if self.mode == "fixed":
            return {FIXED_BET: 1.0}
        legal = [bet for bet in BETS if bet <= self.balance]
        lost = bool(self.outcomes) and self.outcomes[-1] < 0
        weights = range(1, len(legal) + 1) if lost else range(len(legal), 0, -1)
        return {bet: weight / sum(weights) for bet, weight in zip(legal, weights, strict=True)}

    def words(self) -> list[str]:
        """The words of the state, up to the decision."""
        past = [part for won in self.outcomes for part in ("won" if won > 0 else "lost", str(abs(won)))]
        parts = [
            ["slot", "machine"], ["goal", self.goal], ["bets", self.mode], ["round", str(self.round)],
            ["balance", str(self.balance)], ["last", *(past if past else ["none"])],
        ]  # fmt: skip
        return [word for part in parts for word in (*part, ";")] + ["choice", ":"]


def play(state: State, bet: int, won: bool) -> State:
    """The state after a bet: a win pays PAYOUT times the bet.

    A balance of 0 or of more than the largest of BALANCES ends the game: no prompt shows it. Raises
    ValueError for a bet that is not legal.
    """
    if bet not in state.bets():
        legal = ", ".join(map(str, state.bets()))
        raise ValueError(
            f"expected a bet of {legal} with balance {state.balance}, {state.mode} bets; got {bet}"
        )
    outcome = bet * (PAYOUT - 1) if won else -bet
    shown = (*state.outcomes, outcome)[-SHOWN:]
    return State(state.goal, state.mode, state.round + 1, state.balance + outcome, shown)


def draw_state(draw: Draw) -> State:
    """A state, each factor drawn by itself; in the first rounds fewer outcomes can be shown."""
    goal, mode = draw.pick(list(GOALS)), draw.pick(list(MODES))
    number = draw.pick(ROUNDS)
    balance = draw.pick(BALANCES)
    outcomes = []
    for _ in range(min(number - 1, SHOWN)):
        bet = FIXED_BET if mode == "fixed" else draw.pick(BETS)
        outcomes.append(bet * (PAYOUT - 1) if draw.chance(0.5) else -bet)
    return State(goal, mode, number, balance, tuple(outcomes))


class SlotMachineTask:
    """The task: drawing documents, and their exact probabilities."""

    name = "slot_machine"

    def words(self) -> list[str]:
        """Every word of the task, in a fixed order."""
        fixed = ["slot", "machine", "goal", "bets", "round", "balance", "last", "won", "lost"]
        fixed += ["choice", "bet", "stop", ";", ":"]
        return list(dict.fromkeys([*fixed, STOP, *GOALS, *MODES, *map(str, _NUMBERS)]))

    def tables(self) -> dict[str, object]:
        """Everything that defines the task, for its hash."""
        return {
            "goals": GOALS, "modes": MODES, "balances": list(BALANCES), "bets": BETS, "rounds": list(ROUNDS),
            "logit": [PER_UNIT, NEUTRAL_BALANCE, PER_WIN], "fixed_bet": FIXED_BET, "shown": SHOWN,
            "payout": PAYOUT, "version": 1,
        }  # fmt: skip

    def document(self, draw: Draw) -> list[str]:
        """The words of one document, without <bos> and <eos>."""
        state = draw_state(draw)
        if draw.chance(state.p_stop):
            return [*state.words(), STOPS, STOP]
        bets = state.bets()
        bet = list(bets)[draw.weighted(list(bets.values()))]
        return [*state.words(), BET, str(bet), STOP]

    def weights(self, words: Sequence[str]) -> list[float]:
        """How much each word counts in training."""
        return after_cue(words)

    def log_probability(self, words: Sequence[str]) -> float:
        """Exact log probability (nats) of a document; -inf for one that the task cannot draw."""
        return log_share(self._probability(list(words)))

    def _probability(self, words: list[str]) -> float:
        state = read_state(words)
        if state is None:
            return 0.0
        share = 1.0 / (len(GOALS) * len(MODES) * len(ROUNDS) * len(BALANCES)) / 2.0 ** len(state.outcomes)
        if state.mode == "variable":
            share /= float(len(BETS)) ** len(state.outcomes)
        decision = words[len(state.words()) :]
        if decision == [STOPS, STOP]:
            return share * state.p_stop
        bets = {str(bet): p for bet, p in state.bets().items()}
        if len(decision) == 3 and decision == [BET, decision[1], STOP]:
            return share * (1.0 - state.p_stop) * bets.get(decision[1], 0.0)
        return 0.0


def read_state(words: Sequence[str]) -> State | None:
    """The state that a text opens with, or None if it is not one that `draw_state` can draw."""
    parts = " ".join(words).split(" ; ")
    if len(parts) < 6 or parts[0] != "slot machine":
        return None
    fields = [part.split() for part in parts[1:6]]
    if [field[0] for field in fields] != ["goal", "bets", "round", "balance", "last"]:
        return None
    past = fields[4][1:]
    numbers = [*past[1::2], fields[2][-1], fields[3][-1]]
    if not all(number.isdigit() for number in numbers if number != "none"):
        return None
    outcomes = tuple(
        int(size) * (1 if sign == "won" else -1) for sign, size in zip(past[::2], past[1::2], strict=False)
    )
    if fields[0][1] not in GOALS or fields[1][1] not in MODES:
        return None
    state = State(fields[0][1], fields[1][1], int(fields[2][1]), int(fields[3][1]), outcomes)
    bets = (FIXED_BET,) if state.mode == "fixed" else BETS
    sizes = {bet * (PAYOUT - 1) for bet in bets} | {-bet for bet in bets}
    right = (
        state.round in ROUNDS
        and state.balance in BALANCES
        and len(outcomes) == min(state.round - 1, SHOWN)
        and set(outcomes) <= sizes
        and list(words[: len(state.words())]) == state.words()
    )
    return state if right else None


SLOT_MACHINE = SlotMachineTask()
