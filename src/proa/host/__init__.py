# SPDX-License-Identifier: Apache-2.0
"""Typed wrappers of kernel interfaces and tools. Knows no container, image or network of ours."""
