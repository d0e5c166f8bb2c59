"""CUDA without a GPU: PTX executed on the CPU, and a stand-in for the driver under the real host code."""
