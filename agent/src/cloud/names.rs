//! Names to addresses, by the servers that this device's network gave it and by no others: a resolver of somebody's
//! choosing would be told where every device is and what it talks to.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    system_conf::parse_resolv_conf,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Where the system names its servers.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// More is no list of name servers.
const MAX_BYTES: u64 = 64 << 10;

/// Looks names up. Reads its file when first asked, and again at each question until the file names a server.
pub(super) struct Names {
    file: PathBuf,
    resolver: Arc<Mutex<Option<TokioResolver>>>,
}

impl Names {
    /// By the servers that `file` names.
    pub(super) fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), resolver: Arc::default() }
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut resolver = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = &*resolver {
            return Ok(resolver.clone());
        }
        let (config, options) = self.config()?;
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        // Both at once, the first to answer is used.
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let built = builder.build().map_err(|e| format!("names cannot be looked up: {e}"))?;
        Ok(resolver.insert(built).clone())
    }

    /// The servers of the file.
    pub(super) fn servers(&self) -> Result<Vec<IpAddr>, String> {
        Ok(self.config()?.0.name_servers().iter().map(|server| server.ip).collect())
    }

    /// Asks one server, once, past every cache, for the addresses of `name`; empty where there are none.
    pub(super) async fn ask(server: IpAddr, name: &str, patience: Duration) -> Result<Vec<IpAddr>, String> {
        let config = ResolverConfig::from_name_servers(vec![NameServerConfig::udp_and_tcp(server)]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.timeout = patience;
        options.attempts = 1;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = builder.build().map_err(|e| e.to_string())?;
        // The end of the name is said, so that no search domain is tried.
        let whole = format!("{}.", name.trim_end_matches('.'));
        match tokio::time::timeout(patience, resolver.lookup_ip(whole)).await {
            Ok(Ok(found)) => Ok(found.iter().collect()),
            Ok(Err(e)) if e.is_no_records_found() => Ok(Vec::new()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
        }
    }

    fn config(&self) -> Result<(ResolverConfig, ResolverOpts), String> {
        let file = self.file.display();
        let none = |why: &str| {
            format!(
                "{file} has no nameserver ({why}), so no name can be looked up: is the network up? \
                 It gets its servers from DHCP or from whoever set the network up"
            )
        };
        match fs::metadata(&self.file) {
            Err(e) => return Err(none(&e.to_string())),
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(format!("{file} is larger than {MAX_BYTES} bytes: that is no resolv.conf"));
            }
            Ok(_) => {}
        }
        let text = fs::read(&self.file).map_err(|e| none(&e.to_string()))?;
        parse_resolv_conf(text).map_err(|e| none(&e.to_string()))
    }
}

/// The name servers that `file` names.
///
/// # Errors
/// Why it names none.
pub fn name_servers(file: impl Into<PathBuf>) -> Result<Vec<IpAddr>, String> {
    Names::new(file).servers()
}

/// Asks one name server, once, for the addresses of `name`; empty where it knows of none.
///
/// # Errors
/// Why it did not answer.
pub async fn ask_server(server: IpAddr, name: &str, patience: Duration) -> Result<Vec<IpAddr>, String> {
    Names::ask(server, name, patience).await
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.resolver();
        Box::pin(async move {
            let found = resolver?.lookup_ip(name.as_str()).await?;
            let addresses: Vec<IpAddr> = found.iter().collect();
            Ok(Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: Option<&str>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let (config, _) = Names::new(&file).config()?;
        Ok(config.name_servers().iter().map(|s| s.ip.to_string()).collect())
    }

    #[test]
    fn exactly_the_servers_of_the_file_are_asked() {
        let text =
            "# by hand\nsearch lan\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions timeout:2\n";
        assert_eq!(servers(Some(text)).unwrap(), ["192.0.2.53", "2001:db8::53"]);
    }

    #[test]
    fn without_a_nameserver_nobody_is_asked() {
        for text in [None, Some(""), Some("# nothing\nsearch lan\n"), Some("nameserver not-an-address\n")] {
            let why = servers(text).unwrap_err();
            assert!(why.contains("has no nameserver"), "{text:?}: {why}");
        }
    }

    #[tokio::test]
    async fn a_file_that_comes_later_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let names = Names::new(&file);
        let why = names.resolve("cloud.example.org".parse().unwrap()).await.err().unwrap().to_string();
        assert!(why.contains("has no nameserver"), "{why}");
        fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
        assert!(names.resolver().is_ok());
    }
}
