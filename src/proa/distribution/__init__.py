# SPDX-License-Identifier: Apache-2.0
"""The client of registries: names to endpoints, authentication, manifests, blobs."""
