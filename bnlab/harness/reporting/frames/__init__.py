"""Frames that figures and claims are made of: rows of tables, comparisons, intervals over seeds. No drawing.

`selection` has rows with their networks' settings, chosen, ordered and named; `means` compares and averages them. Every
function raises UserError where a column is missing. Else three mistakes are refused: networks that an average would mix
(`rows`), several rows of one seed (`interval`), and pairs of which one side has other seeds (`paired`).
"""

from bnlab.harness.reporting.frames.means import average as average
from bnlab.harness.reporting.frames.means import best_on_average as best_on_average
from bnlab.harness.reporting.frames.means import interval as interval
from bnlab.harness.reporting.frames.means import other_seeds as other_seeds
from bnlab.harness.reporting.frames.means import over_best as over_best
from bnlab.harness.reporting.frames.means import paired as paired
from bnlab.harness.reporting.frames.means import score as score
from bnlab.harness.reporting.frames.selection import DEFAULT_MOMENTUM as DEFAULT_MOMENTUM
from bnlab.harness.reporting.frames.selection import OtherThan as OtherThan
from bnlab.harness.reporting.frames.selection import find_parameter as find_parameter
from bnlab.harness.reporting.frames.selection import lowest as lowest
from bnlab.harness.reporting.frames.selection import name_panels as name_panels
from bnlab.harness.reporting.frames.selection import put_in_order as put_in_order
from bnlab.harness.reporting.frames.selection import rows as rows
from bnlab.harness.reporting.frames.selection import select as select
from bnlab.harness.reporting.frames.selection import share_name as share_name
