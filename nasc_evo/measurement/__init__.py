"""Cost tables measured on the machine at hand, and the timing of evaluators (:mod:`.evaluator`).

Pieces are measured: blocks alone, and runs of blocks out of random networks, whole or one side of
a cut. Each is an item of a session. In every round each item has a burst of samples; all of its
bursts make its figure. Blocks at several places of a space may be one kind; what networks compute
beside blocks is a kind, too. Sums of the costs of kinds predict runs, and are corrected by them.
"""
