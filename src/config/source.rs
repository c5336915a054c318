//! Where a configuration reads the world: files and the environment. Behind a trait, so that tests and dry runs read from memory.

use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

/// The largest file that is read. YAML has a bound of its own; lists of networks and key sets may be larger.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// What a configuration may read.
pub trait Source {
    /// The bytes of a file. An error is anything but a whole regular file.
    fn read(&self, path: &Path) -> Result<Vec<u8>>;

    /// An environment variable, if it is set and UTF-8.
    fn env(&self, name: &str) -> Option<String>;
}

/// The files and the environment of this process. Files over 16 MiB and everything but regular files are errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Source for System {
    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        // Opening a FIFO would wait for a writer, and a device may never end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut bytes = Vec::new();
        // Counted while reading: the size that the metadata states may be stale or, under /proc, 0.
        std::fs::File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(Error::new(ErrorKind::FileTooLarge, "larger than 16 MiB"));
        }
        Ok(bytes)
    }

    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_regular_files_up_to_the_bound_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"text").unwrap();
        assert_eq!(System.read(&file).unwrap(), b"text");
        std::fs::File::options().write(true).open(&file).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert_eq!(System.read(&file).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(System.read(folder.path()).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(System.read(Path::new("/dev/zero")).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(System.read(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
