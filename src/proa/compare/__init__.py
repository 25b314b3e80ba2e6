# SPDX-License-Identifier: Apache-2.0
"""Both hulls side by side, measured: ``proa compare``.

    comparison   the run: what is done in which order; gives a Report
    instances    one container of either hull: made, listened to, removed
    probing      the probe program, inside a hull and on the host
    startup, performance, command, isolation, footprint, support
                 one topic each: what is measured and which rows it gives
    statistics, figures, recommendation
                 pure: medians and spreads, cells and rows, what follows from them
    render, document
                 a Report as a table, and as JSON

Speaks to the daemon through ``proa.client`` only. What lies outside the API (the host's own speed, the
memory of the processes behind an instance) is read from this host, when the daemon runs on it.
"""
