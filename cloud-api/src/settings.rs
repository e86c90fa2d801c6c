//! From flags, environment and file to a checked [`Config`]. In that order: a flag beats the environment, the
//! environment the file, the file the default. What does not make sense together refuses to start, and says which
//! setting and what to change.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::config::{BuildLimits, Config, PING_MAX_S, RECORDINGS_STAY_S, Tls};

/// Where the data is and where the settings are; every command takes these.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// Folder for everything the cloud keeps: database, blobs, git, keys, logs.
    #[arg(long, env = "COPAL_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Settings file (TOML); its keys are the long flags with `_` for `-`.
    #[arg(long, env = "COPAL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Everything that can be set. The same names as flags (`--tls-cert`), environment (`COPAL_TLS_CERT`) and keys of the
/// file (`tls_cert`).
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Filled from [`Place`] on the command line; a key of the file.
    #[arg(skip)]
    pub data: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:8080]. Port 0 takes a free one; DATA/run/listen tells which.
    #[arg(long, env = "COPAL_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Base URL people and devices use [default: made of the address listened on].
    #[arg(long, env = "COPAL_URL", value_name = "URL")]
    pub url: Option<String>,
    /// TLS certificate chain, PEM, leaf first; read again when it changes and on SIGHUP.
    #[arg(long, env = "COPAL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Key of --tls-cert, PEM.
    #[arg(long, env = "COPAL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Serve under the private CA made by `copal-cloud tls init`.
    #[arg(long, env = "COPAL_TLS_PRIVATE_CA", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub tls_private_ca: Option<bool>,
    /// Get certificates for this name by ACME (TLS-ALPN-01: the CA must reach this server on port 443). Repeatable.
    #[arg(long, env = "COPAL_ACME_DOMAIN", value_name = "NAME", value_delimiter = ',')]
    pub acme_domain: Vec<String>,
    /// Address the ACME CA may write to.
    #[arg(long, env = "COPAL_ACME_EMAIL", value_name = "EMAIL")]
    pub acme_email: Option<String>,
    /// Directory of the ACME CA [default: Let's Encrypt].
    #[arg(long, env = "COPAL_ACME_DIRECTORY", value_name = "URL")]
    pub acme_directory: Option<String>,
    /// Trust this PEM file for the ACME directory, instead of the public CAs: for a CA on the local network.
    #[arg(long, env = "COPAL_ACME_DIRECTORY_CA", value_name = "FILE")]
    pub acme_directory_ca: Option<PathBuf>,
    /// Engine that builds images [default: unix:///var/run/docker.sock].
    #[arg(long, env = "COPAL_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// Most seconds a build may take [default: 1800].
    #[arg(long, env = "COPAL_BUILD_TIME_S", value_name = "N")]
    pub build_time_s: Option<u64>,
    /// Most bytes of memory of a build step [default: 2147483648].
    #[arg(long, env = "COPAL_BUILD_MEMORY", value_name = "BYTES")]
    pub build_memory: Option<u64>,
    /// Most bytes kept of a build's log [default: 8388608].
    #[arg(long, env = "COPAL_BUILD_LOG", value_name = "BYTES")]
    pub build_log: Option<u64>,
    /// Most bytes of a build's context, unpacked [default: 1073741824].
    #[arg(long, env = "COPAL_BUILD_CONTEXT", value_name = "BYTES")]
    pub build_context: Option<u64>,
    /// Days in which no terminal's recording goes for want of room; where only such a one could, no further terminal opens
    /// [default: 30, at most 90].
    #[arg(long, env = "COPAL_RECORDINGS_STAY_DAYS", value_name = "N")]
    pub recordings_stay_days: Option<u64>,
    /// Most seconds between pings of a device's channel, 60 to 1200 [default: 360]. More spare bytes; a device that is gone is seen
    /// so after two and a half times as long.
    #[arg(long, env = "COPAL_PING_MAX_S", value_name = "N")]
    pub ping_max_s: Option<u64>,
}

/// What settings come to before an address is bound.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Complete except for `url`, where that depends on the port bound.
    pub config: Config,
    /// The URL that was asked for.
    pub url: Option<String>,
}

/// Reads the file a place names, if any.
///
/// # Errors
/// When it cannot be read or has a key nobody knows.
pub fn file(place: &Place) -> anyhow::Result<Settings> {
    let Some(path) = &place.config else { return Ok(Settings::default()) };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading --config {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("--config {}", path.display()))
}

/// The data folder of a place.
///
/// # Errors
/// When none is named.
pub fn data(place: &Place, file: &Settings) -> anyhow::Result<PathBuf> {
    let data = place.data.clone().or_else(|| file.data.clone());
    let data = data.context(
        "no data folder: name one with --data DIR, COPAL_DATA, or `data = \"…\"` in the settings file",
    )?;
    std::path::absolute(&data).with_context(|| format!("--data {}", data.display()))
}

/// Merges and checks everything.
///
/// # Errors
/// Says which setting, why not, and what to change.
pub fn check(place: &Place, flags: Settings) -> anyhow::Result<Checked> {
    let file = file(place)?;
    let data = data(place, &file)?;
    let all = over(flags, file);
    let listen = address(all.listen.as_deref().unwrap_or("127.0.0.1:8080"))?;
    let tls = tls(&all, &data)?;
    if tls == Tls::Off && !listen.ip().to_canonical().is_loopback() {
        bail!(
            "listen is {listen}, which other machines can reach, and there is no TLS: passwords and tokens would travel in the clear. \
             Give --tls-cert and --tls-key, or make a private CA (`copal-cloud tls init --name HOST`, then --tls-private-ca), \
             or --acme-domain; or listen on 127.0.0.1 behind a proxy that does TLS."
        );
    }
    let url = all.url.as_deref().map(|url| check_url(url, &tls)).transpose()?;
    if url.is_none() && listen.ip().is_unspecified() && !matches!(tls, Tls::Acme { .. }) {
        bail!(
            "listen is {listen}, which is not an address anyone can call: give --url, as in https://copal.example.org"
        );
    }
    let default = BuildLimits::default();
    let bound = |key: &str, value: Option<u64>, default: u64, least: u64| match value {
        Some(v) if v < least => bail!("{key} is {v}; the least that makes sense is {least}"),
        v => Ok(v.unwrap_or(default)),
    };
    let build = BuildLimits {
        time_s: bound("build_time_s", all.build_time_s, default.time_s, 1)?,
        memory: bound("build_memory", all.build_memory, default.memory, 16 << 20)?,
        log: bound("build_log", all.build_log, default.log, 4 << 10)?,
        context: bound("build_context", all.build_context, default.context, 1 << 20)?,
    };
    let ping_max_s = all.ping_max_s.unwrap_or(PING_MAX_S);
    ensure!(
        (60..=1200).contains(&ping_max_s),
        "ping_max_s is {ping_max_s}; from 60 (a minute) to 1200 (20 minutes) makes sense"
    );
    let docker_host = all.docker_host.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
    ensure!(
        docker_host.starts_with("unix://") || docker_host.starts_with("tcp://"),
        "docker_host is {docker_host:?}; it begins with unix:// or tcp://"
    );
    let stay_days = all.recordings_stay_days.unwrap_or(RECORDINGS_STAY_S / 86_400);
    ensure!(stay_days <= 90, "recordings_stay_days is {stay_days}; recordings are kept for 90 days");
    let config = Config {
        data,
        listen,
        url: String::new(),
        tls_pins: Vec::new(),
        tls,
        docker_host,
        build,
        recordings_stay_s: stay_days * 86_400,
        ping_max_s,
    };
    Ok(Checked { config, url })
}

/// The URL by the address bound, where none was given.
#[must_use]
pub fn default_url(tls: &Tls, bound: SocketAddr) -> String {
    let port =
        |standard: u16| if bound.port() == standard { String::new() } else { format!(":{}", bound.port()) };
    match tls {
        Tls::Acme { domains, .. } => {
            format!("https://{}{}", domains.first().map_or("localhost", String::as_str), port(443))
        }
        Tls::Off => format!("http://{}", SocketAddr::new(bound.ip().to_canonical(), bound.port())),
        _ => format!("https://{}", SocketAddr::new(bound.ip().to_canonical(), bound.port())),
    }
}

fn over(a: Settings, b: Settings) -> Settings {
    Settings {
        data: a.data.or(b.data),
        listen: a.listen.or(b.listen),
        url: a.url.or(b.url),
        tls_cert: a.tls_cert.or(b.tls_cert),
        tls_key: a.tls_key.or(b.tls_key),
        tls_private_ca: a.tls_private_ca.or(b.tls_private_ca),
        acme_domain: if a.acme_domain.is_empty() { b.acme_domain } else { a.acme_domain },
        acme_email: a.acme_email.or(b.acme_email),
        acme_directory: a.acme_directory.or(b.acme_directory),
        acme_directory_ca: a.acme_directory_ca.or(b.acme_directory_ca),
        docker_host: a.docker_host.or(b.docker_host),
        build_time_s: a.build_time_s.or(b.build_time_s),
        build_memory: a.build_memory.or(b.build_memory),
        build_log: a.build_log.or(b.build_log),
        build_context: a.build_context.or(b.build_context),
        recordings_stay_days: a.recordings_stay_days.or(b.recordings_stay_days),
        ping_max_s: a.ping_max_s.or(b.ping_max_s),
    }
}

fn address(text: &str) -> anyhow::Result<SocketAddr> {
    text.to_socket_addrs()
        .ok()
        .and_then(|mut a| a.next())
        .with_context(|| format!("listen is {text:?}; it is HOST:PORT, as in 127.0.0.1:8080 or [::]:8443"))
}

fn tls(all: &Settings, data: &Path) -> anyhow::Result<Tls> {
    let private = all.tls_private_ca.unwrap_or(false);
    let acme = !all.acme_domain.is_empty();
    let files = all.tls_cert.is_some() || all.tls_key.is_some();
    ensure!(
        u8::from(private) + u8::from(acme) + u8::from(files) <= 1,
        "tls_cert/tls_key, tls_private_ca and acme_domain exclude each other: keep one of them"
    );
    if !acme {
        for (key, set) in [
            ("acme_email", all.acme_email.is_some()),
            ("acme_directory", all.acme_directory.is_some()),
            ("acme_directory_ca", all.acme_directory_ca.is_some()),
        ] {
            ensure!(!set, "{key} is set, but acme_domain is not: name the domains to certify, or drop {key}");
        }
    }
    if private {
        ensure!(
            crate::tls::private_ca::exists(&data.join("tls")),
            "tls_private_ca is set, but there is no CA in {}: run `copal-cloud tls init --data {} --name HOST` first",
            data.join("tls").display(),
            data.display()
        );
        return Ok(Tls::PrivateCa);
    }
    if acme {
        for name in &all.acme_domain {
            ensure!(
                name.contains('.') && !name.contains([':', '/', '*', ' ']) && name.parse::<IpAddr>().is_err(),
                "acme_domain {name:?} is not a host name that a public CA certifies"
            );
        }
        return Ok(Tls::Acme {
            domains: all.acme_domain.clone(),
            email: all.acme_email.clone(),
            directory: all.acme_directory.clone(),
            directory_ca: all.acme_directory_ca.clone(),
        });
    }
    match (&all.tls_cert, &all.tls_key) {
        (None, None) => Ok(Tls::Off),
        (Some(cert), Some(key)) => Ok(Tls::Files { cert: cert.clone(), key: key.clone() }),
        (Some(_), None) => bail!("tls_cert is set, but tls_key is not: give the key of that certificate"),
        (None, Some(_)) => bail!("tls_key is set, but tls_cert is not: give the certificate of that key"),
    }
}

fn check_url(url: &str, tls: &Tls) -> anyhow::Result<String> {
    let url = url.trim_end_matches('/');
    let uri: axum::http::Uri =
        url.parse().map_err(|_| anyhow::anyhow!("url is {url:?}; it is like https://copal.example.org"))?;
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        bail!("url is {url:?}; it is like https://copal.example.org");
    };
    ensure!(
        uri.path().trim_matches('/').is_empty() && uri.query().is_none(),
        "url is {url:?}; it has no path"
    );
    ensure!(!url.contains('@'), "url carries a user name; leave it out");
    match scheme {
        "https" => {}
        "http" if *tls != Tls::Off => {
            bail!("url is {url:?}, but TLS is set: it begins with https://")
        }
        "http" if is_loopback(host) => {}
        "http" => bail!(
            "url is {url:?}: devices and browsers reach anything but this machine by https:// only. Set up TLS, or give the https URL of the proxy in front."
        ),
        other => bail!("url begins with {other}://; it begins with https://"),
    }
    Ok(url.to_owned())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(flags: Settings) -> String {
        let place = Place { data: Some("/nowhere".into()), config: None };
        match check(&place, flags) {
            Ok(ok) => panic!("accepted: {ok:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    fn s(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn defaults_are_plain_http_on_loopback() {
        let place = Place { data: Some("/nowhere".into()), config: None };
        let checked = check(&place, Settings::default()).unwrap();
        assert_eq!(checked.config.tls, Tls::Off);
        assert!(checked.config.listen.ip().is_loopback());
        assert_eq!(default_url(&Tls::Off, "127.0.0.1:8080".parse().unwrap()), "http://127.0.0.1:8080");
    }

    #[test]
    fn half_usable_settings_name_the_key_and_the_way_out() {
        let cases = [
            (Settings { listen: s("0.0.0.0:80"), ..Settings::default() }, "no TLS"),
            (Settings { listen: s("[::]:80"), ..Settings::default() }, "no TLS"),
            (Settings { listen: s("nonsense"), ..Settings::default() }, "HOST:PORT"),
            (Settings { tls_cert: Some("c".into()), ..Settings::default() }, "tls_key is not"),
            (Settings { tls_key: Some("c".into()), ..Settings::default() }, "tls_cert is not"),
            (Settings { tls_private_ca: Some(true), ..Settings::default() }, "copal-cloud tls init"),
            (
                Settings {
                    tls_private_ca: Some(true),
                    acme_domain: vec!["a.example".to_owned()],
                    ..Settings::default()
                },
                "exclude each other",
            ),
            (Settings { acme_email: s("a@b"), ..Settings::default() }, "acme_domain is not"),
            (Settings { acme_domain: vec!["10.0.0.1".to_owned()], ..Settings::default() }, "not a host name"),
            (Settings { url: s("http://copal.example.org"), ..Settings::default() }, "https:// only"),
            (Settings { url: s("https://copal.example.org/sub"), ..Settings::default() }, "no path"),
            (Settings { url: s("ftp://copal.example.org"), ..Settings::default() }, "https://"),
            (Settings { url: s("copal.example.org"), ..Settings::default() }, "it is like"),
            (Settings { docker_host: s("/var/run/docker.sock"), ..Settings::default() }, "unix://"),
            (Settings { build_time_s: Some(0), ..Settings::default() }, "build_time_s"),
            (
                Settings {
                    listen: s("0.0.0.0:443"),
                    tls_cert: Some("c".into()),
                    tls_key: Some("k".into()),
                    ..Settings::default()
                },
                "give --url",
            ),
        ];
        for (flags, want) in cases {
            let text = refusal(flags.clone());
            assert!(text.contains(want), "{flags:?}: {text}");
        }
    }

    #[test]
    fn unknown_keys_of_the_file_are_refused_and_flags_beat_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copal-cloud.toml");
        let place = Place { data: None, config: Some(path.clone()) };
        std::fs::write(&path, "data = '/d'\nlistne = '127.0.0.1:1'\n").unwrap();
        assert!(format!("{:#}", check(&place, Settings::default()).unwrap_err()).contains("listne"));
        std::fs::write(&path, "data = '/d'\nlisten = '127.0.0.1:1'\nbuild_time_s = 5\n").unwrap();
        let flags = Settings { listen: s("127.0.0.1:2"), ..Settings::default() };
        let checked = check(&place, flags).unwrap().config;
        assert_eq!((checked.listen.port(), checked.build.time_s), (2, 5));
        assert_eq!(checked.data, PathBuf::from("/d"));
    }

    #[test]
    fn no_data_folder_is_told() {
        assert!(refusal_of_nothing().contains("--data"));
    }

    fn refusal_of_nothing() -> String {
        check(&Place::default(), Settings::default()).unwrap_err().to_string()
    }
}
