#!/bin/sh
# Installs a Vulkan driver if the machine has none: Mesa's lavapipe, which also runs without a GPU.
set -eu

for folder in /usr/share/vulkan/icd.d /etc/vulkan/icd.d; do
    if ls "$folder"/*.json >/dev/null 2>&1 && ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; then
        exit 0
    fi
done
if ! command -v apt-get >/dev/null; then
    echo "no Vulkan driver was found: install Mesa's Vulkan drivers and the Vulkan loader" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
fi
echo "installing mesa-vulkan-drivers and libvulkan1"
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mesa-vulkan-drivers libvulkan1 >/dev/null
