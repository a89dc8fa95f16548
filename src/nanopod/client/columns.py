"""The 96 properties of an offer that a hardware requirement may name, such as `gpu_ram >= 48`.

`TextColumn`s hold words, `FlagColumn`s true or false, the others numbers. `gpu_ram`, `gpu_total_ram` and `cpu_ram` are
written in GB (sent in MB), `duration` in days (sent in seconds).
"""

from __future__ import annotations

from nanopod.client.query import Column, FlagColumn, TextColumn

id_ = Column("id")
ask_contract_id = Column("ask_contract_id")
bundle_id = Column("bundle_id")
bundled_results = Column("bundled_results")
bw_nvlink = Column("bw_nvlink")
compute_cap = Column("compute_cap")
cpu_arch = TextColumn("cpu_arch")
cpu_cores = Column("cpu_cores")
cpu_cores_effective = Column("cpu_cores_effective")
cpu_ghz = Column("cpu_ghz")
cpu_name = TextColumn("cpu_name")
cpu_ram = Column("cpu_ram", unit=1000)
credit_discount_max = Column("credit_discount_max")
cuda_max_good = Column("cuda_max_good")
direct_port_count = Column("direct_port_count")
disk_bw = Column("disk_bw")
disk_name = TextColumn("disk_name")
disk_space = Column("disk_space")
dlperf = Column("dlperf")
dlperf_per_dphtotal = Column("dlperf_per_dphtotal")
dph_base = Column("dph_base")
dph_total = Column("dph_total")
driver_version = TextColumn("driver_version")
driver_vers = Column("driver_vers")
duration = Column("duration", unit=86400)
end_date = Column("end_date")
external = FlagColumn("external")
flops_per_dphtotal = Column("flops_per_dphtotal")
geolocation = TextColumn("geolocation")
geolocode = Column("geolocode")
gpu_arch = TextColumn("gpu_arch")
gpu_display_active = FlagColumn("gpu_display_active")
gpu_frac = Column("gpu_frac")
gpu_ids = TextColumn("gpu_ids")
gpu_lanes = Column("gpu_lanes")
gpu_mem_bw = Column("gpu_mem_bw")
gpu_name = TextColumn("gpu_name")
gpu_ram = Column("gpu_ram", unit=1000)
gpu_total_ram = Column("gpu_total_ram", unit=1000)
gpu_max_power = Column("gpu_max_power")
gpu_max_temp = Column("gpu_max_temp")
has_avx = Column("has_avx")
host_id = Column("host_id")
hosting_type = Column("hosting_type")
hostname = TextColumn("hostname")
inet_down = Column("inet_down")
inet_down_cost = Column("inet_down_cost")
inet_up = Column("inet_up")
inet_up_cost = Column("inet_up_cost")
is_bid = FlagColumn("is_bid")
logo = TextColumn("logo")
machine_id = Column("machine_id")
min_bid = Column("min_bid")
mobo_name = TextColumn("mobo_name")
num_gpus = Column("num_gpus")
os_version = TextColumn("os_version")
pci_gen = Column("pci_gen")
pcie_bw = Column("pcie_bw")
public_ipaddr = TextColumn("public_ipaddr")
reliability = Column("reliability")
reliability_mult = Column("reliability_mult")
rentable = FlagColumn("rentable")
rented = FlagColumn("rented")
score = Column("score")
start_date = Column("start_date")
static_ip = FlagColumn("static_ip")
storage_cost = Column("storage_cost")
storage_total_cost = Column("storage_total_cost")
total_flops = Column("total_flops")
verification = TextColumn("verification")
vericode = Column("vericode")
vram_costperhour = Column("vram_costperhour")
webpage = TextColumn("webpage")
vms_enabled = FlagColumn("vms_enabled")
expected_reliability = Column("expected_reliability")
is_vm_deverified = FlagColumn("is_vm_deverified")
resource_type = TextColumn("resource_type")
cluster_id = Column("cluster_id")
avail_vol_ask_id = Column("avail_vol_ask_id")
avail_vol_dph = Column("avail_vol_dph")
avail_vol_size = Column("avail_vol_size")
nw_disk_min_bw = Column("nw_disk_min_bw")
nw_disk_max_bw = Column("nw_disk_max_bw")
nw_disk_avg_bw = Column("nw_disk_avg_bw")
platform_fee = Column("platform_fee")
datacenter = FlagColumn("datacenter")
verified = FlagColumn("verified")
allocated_storage = Column("allocated_storage")
target_reliability = Column("target_reliability")
reliability2 = Column("reliability2")
dphtotal = Column("dphtotal")
gpu_totalram = Column("gpu_totalram")
gpu_totalram_GB = Column("gpu_totalram_GB")
cpu_ram_GB = Column("cpu_ram_GB")
gpu_ram_GB = Column("gpu_ram_GB")
ubuntu_version = TextColumn("ubuntu_version")

__all__ = [
    "allocated_storage", "ask_contract_id", "avail_vol_ask_id", "avail_vol_dph", "avail_vol_size", "bundle_id",
    "bundled_results", "bw_nvlink", "cluster_id", "compute_cap", "cpu_arch", "cpu_cores", "cpu_cores_effective",
    "cpu_ghz", "cpu_name", "cpu_ram", "cpu_ram_GB", "credit_discount_max", "cuda_max_good", "datacenter",
    "direct_port_count", "disk_bw", "disk_name", "disk_space", "dlperf", "dlperf_per_dphtotal", "dph_base",
    "dph_total", "dphtotal", "driver_vers", "driver_version", "duration", "end_date", "expected_reliability",
    "external", "flops_per_dphtotal", "geolocation", "geolocode", "gpu_arch", "gpu_display_active", "gpu_frac",
    "gpu_ids", "gpu_lanes", "gpu_max_power", "gpu_max_temp", "gpu_mem_bw", "gpu_name", "gpu_ram", "gpu_ram_GB",
    "gpu_total_ram", "gpu_totalram", "gpu_totalram_GB", "has_avx", "host_id", "hosting_type", "hostname", "id_",
    "inet_down", "inet_down_cost", "inet_up", "inet_up_cost", "is_bid", "is_vm_deverified", "logo", "machine_id",
    "min_bid", "mobo_name", "num_gpus", "nw_disk_avg_bw", "nw_disk_max_bw", "nw_disk_min_bw", "os_version",
    "pci_gen", "pcie_bw", "platform_fee", "public_ipaddr", "reliability", "reliability2", "reliability_mult",
    "rentable", "rented", "resource_type", "score", "start_date", "static_ip", "storage_cost", "storage_total_cost",
    "target_reliability", "total_flops", "ubuntu_version", "vericode", "verification", "verified", "vms_enabled",
    "vram_costperhour", "webpage",
]  # fmt: skip
