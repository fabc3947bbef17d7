//! Where files are looked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where files are looked for, in this order: the verified cache, a folder the user names, the binary
/// itself, the hub's cache and the hub at a pinned revision, and files at a pinned commit over HTTPS.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Files that were verified once, by digest; also partial downloads and what was refused.
    pub cache: PathBuf,
    /// The user's folder of data files; never written to.
    pub folder: Option<PathBuf>,
    /// The hub.
    pub hub: Hub,
    /// Never use the network.
    pub offline: bool,
    /// How long a connection may stay silent.
    pub timeout: Duration,
    /// How often a broken download is taken up again where it stopped.
    pub retries: u32,
    /// The pause before the first of these; doubled for each next one.
    pub retry_pause: Duration,
}

/// How the hub is reached; what is none is left to the hub client's own defaults.
#[derive(Clone, Default)]
pub struct Hub {
    /// Its address.
    pub endpoint: Option<String>,
    /// An access token.
    pub token: Option<String>,
    /// Its cache folder, shared with other programs.
    pub cache: Option<PathBuf>,
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("cache", &self.cache)
            .finish()
    }
}

impl Sources {
    /// Only a cache folder, and no network.
    pub fn offline(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            folder: None,
            hub: Hub::default(),
            offline: true,
            timeout: Duration::from_secs(30),
            retries: 4,
            retry_pause: Duration::from_millis(500),
        }
    }

    /// As the environment says: `REPLICA_CACHE` (else the platform's cache folder), `REPLICA_DATA`,
    /// `REPLICA_OFFLINE` or `HF_HUB_OFFLINE` (`1`, `true`, `yes` or `on`), `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HF_HUB_CACHE` or `HF_HOME`.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// The same from any source of variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let on = |name: &str| {
            text(name).is_some_and(|value| {
                matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
            })
        };
        // What was stored is not used where the hub's own client would not use it.
        let stored = || match set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None => stored_token(&path("HF_TOKEN_PATH")?),
            Some(_) => None,
        };
        let cache = path("REPLICA_CACHE").unwrap_or_else(|| platform_cache(&path).join("replica"));
        Self {
            folder: path("REPLICA_DATA"),
            hub: Hub {
                endpoint: text("HF_ENDPOINT"),
                token: text("HF_TOKEN").or_else(stored),
                cache: path("HF_HUB_CACHE")
                    .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                    .or_else(|| path("HF_HOME").map(|home| home.join("hub"))),
            },
            offline: on("REPLICA_OFFLINE") || on("HF_HUB_OFFLINE"),
            ..Self::offline(cache)
        }
    }
}

fn stored_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// The folder that the platform keeps caches in; a folder for temporary files if nothing is set.
fn platform_cache(path: &impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let usual = if cfg!(windows) {
        path("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        path("HOME").map(|home| home.join("Library/Caches"))
    } else {
        path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))
    };
    usual.unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Sources {
        Sources::from_variables(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn environment_decides_every_place() {
        let sources = from(&[
            ("REPLICA_CACHE", "/c"),
            ("REPLICA_DATA", "/d"),
            ("HF_ENDPOINT", "http://hub"),
            ("HF_TOKEN", "secret"),
            ("HF_HOME", "/hf"),
        ]);
        assert_eq!(sources.cache, PathBuf::from("/c"));
        assert_eq!(sources.folder, Some(PathBuf::from("/d")));
        assert_eq!(sources.hub.endpoint.as_deref(), Some("http://hub"));
        assert_eq!(sources.hub.cache, Some(PathBuf::from("/hf/hub")));
        assert!(!sources.offline);
        assert!(!format!("{sources:?}").contains("secret"));
    }

    #[test]
    fn empty_means_unset() {
        let sources = from(&[("REPLICA_DATA", ""), ("REPLICA_OFFLINE", "0"), ("REPLICA_CACHE", "/c")]);
        assert_eq!(sources.folder, None);
        assert!(!sources.offline);
        assert!(from(&[("HF_HUB_OFFLINE", "1")]).offline);
        assert!(from(&[("REPLICA_OFFLINE", "true")]).offline);
    }

    #[test]
    fn stored_token_is_read_unless_that_is_disabled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "stored\n").unwrap();
        let path = path.to_str().unwrap();
        let token = |pairs: &[(&str, &str)]| from(pairs).hub.token;
        assert_eq!(token(&[("HF_TOKEN_PATH", path)]).as_deref(), Some("stored"));
        assert_eq!(token(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", "given")]).as_deref(), Some("given"));
        assert_eq!(token(&[("HF_TOKEN_PATH", path), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn cache_follows_the_platform() {
        assert_eq!(from(&[("HOME", "/h")]).cache, PathBuf::from("/h/.cache/replica"));
        assert_eq!(from(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, PathBuf::from("/x/replica"));
    }
}
