# SPDX-License-Identifier: Apache-2.0
"""Builds: the Dockerfile's steps done with images, layers and containers."""
