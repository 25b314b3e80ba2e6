# SPDX-License-Identifier: Apache-2.0
"""Bridges, addresses, published ports and names, for both hulls."""
