"""The state of a scalar series: lanes that any number of values merge into.

A slot's state is six numbers, whatever its reduction, so that the initial state is one constant and a series can appear
at any time without a write to the device:

    SUM, WEIGHT, COUNT     add up
    MAX, NEGATED_MIN       take the larger
    LAST                   takes the newer

A value is merged into WEIGHT, COUNT and the one lane that the reduction of its series reads; the others stay initial.
NaN runs through all of them as it does through eager arithmetic.
"""

import math

SUM, WEIGHT, COUNT, MAX, NEGATED_MIN, LAST = range(6)
LANES = 6
INITIAL = (0.0, 0.0, 0.0, -math.inf, -math.inf, 0.0)
