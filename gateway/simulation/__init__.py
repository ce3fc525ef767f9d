"""What routing would do: the gateway's own planner, strategies and circuits, on a clock that is only a number.

Nothing here asks an upstream, reads a database or waits; a day is simulated in seconds. What an upstream does is a
model of it (`upstream.Service`), fitted to the ledger (`fitting`) or written down for a picture
(`benchmarks.plot_routing`). `simulator.Simulator` takes requests in the order of their arrival; `replay` gives it those
of the ledger.

What is as in the gateway: plans, the strategies' signals, circuits, prompt-cache holders, the budgets for further
attempts, a deployment's own limits. What is not: there is one process, nobody leaves, no answer is cut in its middle,
the second request of a hedge is not made.
"""
