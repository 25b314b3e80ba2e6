# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile language: text to instructions, stages, scopes, patterns; and the books of the cache."""
