//! What a driver made of the shaders, kept in a file, so that a device is open sooner the next time.
//!
//! A driver reads what is in such a file without suspicion. So only a file that nobody else can write is used, only as it
//! was written here, and only by the same driver for the same adapter. Whatever is wrong with it costs time, no more.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::KERNEL_SET;

/// Longest file that is read.
const MAX_BYTES: u64 = 256 << 20;
/// What a file begins with, then a sum of all that follows.
const MAGIC: [u8; 8] = *b"tmpipes1";
const SUM_BYTES: usize = 32;

/// A device's cache of pipelines, and the file that it is kept in.
#[derive(Debug)]
pub(super) struct PipelineCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    /// What the file held, if it was used.
    loaded: Option<[u8; SUM_BYTES]>,
}

impl PipelineCache {
    /// The cache that is kept in a folder for an adapter, or an empty one; none for drivers without.
    pub(super) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, dir: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(info)?;
        let path = dir.join(format!("{key}_kernels_{KERNEL_SET}.bin"));
        let data = match read(&path) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "a cache of pipelines is not used and written anew");
                None
            }
        };
        #[expect(unsafe_code, reason = "drivers trust what their caches hold")]
        // SAFETY: what is given is what `get_data` gave, by its sum, from a file that nobody else can write; wgpu compares
        // the adapter and the driver's version, and begins with nothing where they are others.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("pipelines"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        let loaded = data.map(|data| sum(&data));
        Some(Self { cache, path, loaded })
    }

    /// The cache, for pipelines that are compiled.
    pub(super) fn get(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Whether the file was used.
    pub(super) fn was_kept(&self) -> bool {
        self.loaded.is_some()
    }

    /// Writes what there is now, if it is something else than was read. That it cannot be written is only told.
    pub(super) fn keep(&self) {
        let Some(data) = self.cache.get_data() else { return };
        if self.loaded == Some(sum(&data)) || data.len() as u64 > MAX_BYTES {
            return;
        }
        if let Err(error) = write(&self.path, &data) {
            tracing::warn!(%error, file = %self.path.display(), "pipelines are compiled again the next time");
        }
    }
}

fn sum(data: &[u8]) -> [u8; SUM_BYTES] {
    Sha256::digest(data).into()
}

#[expect(
    unsafe_code,
    reason = "the standard library does not tell whose this process is"
)]
fn own_uid() -> u32 {
    // SAFETY: it only gives a number.
    unsafe { libc::geteuid() }
}

/// What was written to a file, if it is all there and nobody else can have written it.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let is_ours = |metadata: &fs::Metadata| metadata.uid() == own_uid() && metadata.mode() & 0o022 == 0;
    let folder = path.parent().map(fs::metadata).transpose()?;
    if !metadata.is_file() || !is_ours(&metadata) || !folder.as_ref().is_some_and(is_ours) {
        return Err(refused("others can write it or its folder"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let whole = bytes
        .strip_prefix(&MAGIC)
        .and_then(|rest| rest.split_first_chunk::<SUM_BYTES>());
    match whole {
        Some((expected, data)) if *expected == sum(data) => Ok(data.to_vec()),
        Some(_) | None => Err(refused("it is not what was written")),
    }
}

/// Writes a file anew, all of it or nothing; only its owner may look at it.
fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = (|| {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        for part in [&MAGIC[..], &sum(data), data] {
            file.write_all(part)?;
        }
        fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{DeviceConfig, open_with_cache};
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("ours");
        dir
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = folder();
        let path = dir.path().join("deep").join("cache.bin");
        write(&path, b"of the driver").expect("room");
        assert_eq!(read(&path).expect("as written"), b"of the driver");
        write(&path, b"later").expect("room");
        assert_eq!(read(&path).expect("as written"), b"later");
        let files = fs::read_dir(path.parent().expect("a folder")).expect("readable");
        assert_eq!(files.count(), 1, "nothing is left beside it");

        let whole = fs::read(&path).expect("readable");
        for (bytes, what) in [
            (&whole[..whole.len() - 1], "cut short"),
            (&whole[..MAGIC.len()], "no sum"),
            (&b""[..], "empty"),
        ] {
            fs::write(&path, bytes).expect("room");
            assert_eq!(
                read(&path).expect_err(what).kind(),
                io::ErrorKind::InvalidData,
                "{what}"
            );
        }
        let mut other = whole.clone();
        other[MAGIC.len() + SUM_BYTES] ^= 1;
        fs::write(&path, &other).expect("room");
        assert!(read(&path).is_err(), "another byte");

        fs::write(&path, &whole).expect("room");
        assert!(read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("ours");
        assert!(read(&path).is_err(), "others can write it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        fs::set_permissions(
            path.parent().expect("a folder"),
            fs::Permissions::from_mode(0o777),
        )
        .expect("ours");
        assert!(read(&path).is_err(), "others can put another in its place");
    }

    #[test]
    fn a_device_keeps_its_pipelines_and_opens_with_them_or_without() {
        let dir = folder();
        let cache = dir.path().join("pipelines");
        let open = || open_with_cache(&DeviceConfig::default(), Some(&cache)).map(drop);
        open().expect("an adapter");
        let mut files: Vec<PathBuf> = fs::read_dir(&cache)
            .expect("a folder for them")
            .map(|entry| entry.expect("a file").path())
            .collect();
        let path = files.pop().expect("a file");
        assert!(files.is_empty());
        let kept = read(&path).expect("as written");
        open().expect("with what was kept");
        assert_eq!(read(&path).expect("as it was"), kept);
        // A file that is spoilt, and one of another driver.
        fs::write(&path, b"spoilt").expect("room");
        open().expect("without it");
        assert_eq!(read(&path).expect("written anew"), kept);
        let mut other = kept.clone();
        other[40] ^= 0xff;
        write(&path, &other).expect("room");
        open().expect("without it");
    }
}
