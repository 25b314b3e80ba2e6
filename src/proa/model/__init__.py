# SPDX-License-Identifier: Apache-2.0
"""Frozen values, identifiers, states and errors. Imports nothing else of proa."""
