# SPDX-License-Identifier: Apache-2.0
"""The Engine API over HTTP: connections, routes, checks of what comes in, shapes of what goes out.

``server`` accepts, ``connection`` speaks HTTP/1.1, ``router`` finds the handler, the modules named after a
resource hold the handlers, ``shapes_*`` turn the engine's records into Docker's JSON, ``streams`` carries
standard streams, ``errors`` maps errors to statuses. What a request means is the engine's business.
"""
