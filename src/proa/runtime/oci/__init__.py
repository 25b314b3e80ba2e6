# SPDX-License-Identifier: Apache-2.0
"""The container hull: OCI bundles run by crun or runc under conmon."""
