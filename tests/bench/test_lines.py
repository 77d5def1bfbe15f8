"""The lines that a call touches: what is made of Valgrind's counts; counting itself needs Valgrind."""

from bench.lines import touched


def written(instructions: int, *misses: int) -> str:
    events = "Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw"
    return f"version: 1\nevents: {events}\n0 1 2\ntotals: {instructions} 5 5 9 9 9 {' '.join(map(str, misses))}\n"


def test_what_the_switch_touches_is_not_of_the_call():
    nothing, call = written(100, 10, 5, 1), written(1100, 30, 15, 3)
    rare = written(9000, 500, 500, 500)  # a collection of garbage, for one
    assert touched([nothing, call, nothing, rare, nothing, call, "no totals"]) == (1000, 32)
