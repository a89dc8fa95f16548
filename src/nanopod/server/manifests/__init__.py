"""Kubernetes objects as they are written for KServe and Knative: read, checked, and made into endpoints of this cloud.

`reading` gives documents with the line of every key, `fields` reads them strictly, one module per kind makes native
specifications, and `apply` writes them. All but `apply` and `status` are pure.
"""
