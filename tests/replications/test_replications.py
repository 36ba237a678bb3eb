"""The replications: small versions meet their criteria, their controls do not, the page is theirs."""

import pytest

from replications.page import PAGE, RECORDS, render, saved
from replications.record import Measure, Record, load, over_seeds
from replications.run import REPLICATIONS, measured
