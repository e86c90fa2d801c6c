//! What a command works with: the folder, the output, the server; and what a word on the command line means there.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use copal_protocol::{
    documents::{Document as _, Root},
    envelope::Envelope,
    ids::{FleetId, Sha256Hex},
    json,
};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    args::Globals,
    failure::{Failure, Kind, Result},
    home::{
        Home,
        fleets::{Chain, FleetRecord},
    },
    http::{Api, address, seg, server_url},
    output::{Out, text},
};

/// See the module.
#[derive(Debug)]
pub struct Context {
    /// The configuration folder.
    pub home: Home,
    /// How to print.
    pub out: Out,
    /// What was said for every command.
    pub globals: Globals,
    /// Unix seconds when the command began.
    pub now: u64,
}

/// A fleet as the server shows it, with its ids parsed.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its name.
    pub slug: String,
    /// Its id by the server; the local record is what signing goes by.
    pub fleet_id: FleetId,
    /// Everything the server said.
    pub value: Value,
}

impl Context {
    /// Finds the folder and takes the options.
    ///
    /// # Errors
    /// Where no folder can be found.
    pub fn new(globals: Globals) -> Result<Self> {
        let home = Home::find(globals.home.clone())?;
        let out = Out { json: globals.json, quiet: globals.quiet };
        Ok(Self { home, out, globals, now: (copal_tls::system_clock())() })
    }

    /// The current server's address.
    ///
    /// # Errors
    /// Where none was signed in to.
    pub fn server(&self) -> Result<String> {
        if let Some(url) = &self.globals.url {
            return Ok(address(&server_url(url)?));
        }
        self.home.config()?.current.ok_or_else(|| {
            Failure::usage("tell which server is meant", "none was signed in to")
                .next("copal login https://your-server")
        })
    }

    /// Pins of a server: those on the command line, else those kept at login.
    ///
    /// # Errors
    /// Where the configuration cannot be read.
    pub fn pins(&self, server: &str) -> Result<Vec<String>> {
        if !self.globals.pin.is_empty() {
            return Ok(self.globals.pin.clone());
        }
        Ok(self.home.config()?.servers.get(server).map(|s| s.pins.clone()).unwrap_or_default())
    }

    /// The current server, signed in.
    ///
    /// # Errors
    /// Where nothing signs us in.
    pub fn api(&self) -> Result<Api> {
        let server = self.server()?;
        let token = match &self.globals.token {
            Some(token) => token.clone(),
            None => self.home.credentials()?.remove(&server).ok_or_else(|| {
                Failure::new(
                    Kind::Refused,
                    "not_signed_in",
                    format!("use {server}"),
                    "not signed in there from this machine",
                )
                .next(format!("copal login {server}"))
            })?,
        };
        Api::new(server_url(&server)?, &self.pins(&server)?, Some(token))?.saying(self.globals.why.as_deref())
    }

    /// The fleet meant: the word given, `--fleet`, or the only one there is.
    ///
    /// # Errors
    /// Where it cannot be told, or there is none.
    pub async fn fleet(&self, api: &Api, word: Option<&str>) -> Result<Fleet> {
        let value = match word.or(self.globals.fleet.as_deref()) {
            Some(slug) => {
                let shown = api.get(&format!("show fleet {slug}"), &format!("/fleets/{}", seg(slug))).await;
                shown.map_err(|e| e.not_found_next("copal fleet list"))?
            }
            None => {
                let mut all = api.some("list the fleets", "/fleets", "", 2).await?;
                match (all.pop(), all.pop()) {
                    (Some(only), None) => only,
                    (None, _) => {
                        return Err(Failure::not_found("find the fleet", "there is no fleet yet")
                            .next("copal fleet create NAME --device-type TYPE --arch ARCH"));
                    }
                    _ => {
                        return Err(Failure::usage("tell which fleet is meant", "there are several")
                            .next("add --fleet NAME, or set COPAL_FLEET"));
                    }
                }
            }
        };
        let fleet_id = text(&value, "fleet_id")
            .parse()
            .map_err(|e| Failure::new(Kind::Network, "answer_not_understood", "read the fleet", e))?;
        Ok(Fleet { slug: text(&value, "slug"), fleet_id, value })
    }

    /// What this machine knows of a fleet by itself. A server that gives a known name another id is not believed.
    ///
    /// # Errors
    /// Where the fleet's root is not known here.
    pub fn record(&self, api: &Api, fleet: &Fleet) -> Result<FleetRecord> {
        let what = format!("use the root of fleet {}", fleet.slug);
        let records = self.home.fleet_records()?;
        if let Some(record) = records.iter().find(|r| r.fleet_id == fleet.fleet_id) {
            return Ok(record.clone());
        }
        if let Some(known) = records.iter().find(|r| r.slug == fleet.slug && r.server == api.address()) {
            let why = format!(
                "the server says its id is {}, this machine knows it as {}",
                fleet.fleet_id, known.fleet_id
            );
            return Err(Failure::trust("fleet_changed", what, why)
                .next("if the fleet was deleted and made again, remove its folder below fleets/ first"));
        }
        Err(Failure::trust("root_unknown", what, "this machine holds no root of it").next(format!(
            "work on the machine that made the fleet, or: copal root trust {} --fingerprint SHA256",
            fleet.slug
        )))
    }

    /// The chain of Roots of a fleet, level with the server: what the server lacks is uploaded, what another machine
    /// added is taken over when it verifies.
    ///
    /// # Errors
    /// Where the server shows a Root that does not follow ours.
    pub async fn chain(&self, api: &Api, fleet: &Fleet) -> Result<(FleetRecord, Chain)> {
        let record = self.record(api, fleet)?;
        let mut chain = self.home.chain(record.fleet_id)?.ok_or_else(|| {
            Failure::trust(
                "root_unknown",
                format!("use the root of fleet {}", fleet.slug),
                "its chain is empty",
            )
        })?;
        let what = format!("compare the root of fleet {}", fleet.slug);
        let path = format!("/fleets/{}/roots", seg(&fleet.slug));
        let there = api.maybe_bytes(&what, &format!("{path}/latest"), Root::MAX_BYTES).await?;
        let version = match &there {
            None => 0,
            Some(bytes) => {
                let envelope = Envelope::parse::<Root>(bytes).map_err(|e| Failure::verify(&what, &e))?;
                let root: Root = json::from_slice(envelope.payload(), json::PAYLOAD_DEPTH)
                    .map_err(|e| Failure::trust("E_PAYLOAD", &what, e))?;
                if root.version == chain.newest.version && envelope.payload_sha256() != chain.newest.sha256()
                {
                    let why = format!("the server shows another root {}", root.version);
                    return Err(Failure::trust("root_differs", &what, why).next(
                        "two machines made a root at once, or the server is not to be trusted: compare `copal root show`",
                    ));
                }
                root.version
            }
        };
        for next in chain.newest.version + 1..=version {
            let bytes = api.bytes(&what, &format!("{path}/{next}"), Root::MAX_BYTES).await?;
            let envelope = Envelope::parse::<Root>(&bytes).map_err(|e| Failure::verify(&what, &e))?;
            chain.push(envelope.clone()).map_err(|e| Failure::verify(&what, &e))?;
            self.home.save_root(record.fleet_id, next, &envelope)?;
            self.out.remark(format!("took over root {next}, made on another machine"));
        }
        for missing in version + 1..=chain.newest.version {
            let index = usize::try_from(missing - 1).unwrap_or(usize::MAX);
            if let Some(envelope) = chain.envelopes.get(index) {
                upload_root(api, &fleet.slug, envelope).await?;
                self.out.remark(format!("uploaded root {missing}, which the server lacked"));
            }
        }
        Ok((record, chain))
    }

    /// A device by its id, the beginning of its id, or its name.
    ///
    /// # Errors
    /// Where there is none, or several.
    pub async fn device(&self, api: &Api, word: &str) -> Result<Value> {
        let what = format!("find device {word}");
        if word.parse::<copal_protocol::ids::DeviceId>().is_ok() {
            let shown = api.get(&what, &format!("/devices/{word}")).await;
            return shown.map_err(|e| e.not_found_next("copal device list"));
        }
        let fleets = match &self.globals.fleet {
            Some(slug) => vec![self.fleet(api, Some(slug)).await?.slug],
            None => api.all(&what, "/fleets", "").await?.iter().map(|f| text(f, "slug")).collect(),
        };
        let mut found = Vec::new();
        for slug in fleets {
            let devices = api.all(&what, &format!("/fleets/{}/devices", seg(&slug)), "").await?;
            found.extend(devices.into_iter().filter(|device| {
                text(device, "name") == word
                    || (word.len() >= 4 && text(device, "device_id").starts_with(word))
            }));
        }
        match (found.len(), found.pop()) {
            (1, Some(device)) => Ok(device),
            (0, _) => {
                Err(Failure::not_found(what, "no device has this id or name").next("copal device list"))
            }
            (n, _) => Err(Failure::usage(what, format!("{n} devices are called so"))
                .next("use the id, or the beginning of it: copal device list")),
        }
    }

    /// A release by its id, the beginning of its id, its version, or `latest`.
    ///
    /// # Errors
    /// Where there is none, or several.
    pub async fn release(&self, api: &Api, word: &str) -> Result<Value> {
        let what = format!("find release {word}");
        if word.parse::<Sha256Hex>().is_ok() {
            let shown = api.get(&what, &format!("/releases/{word}")).await;
            return shown.map_err(|e| e.not_found_next("copal release list"));
        }
        let fleet = self.fleet(api, None).await?;
        let releases = api.all(&what, &format!("/fleets/{}/releases", seg(&fleet.slug)), "").await?;
        if word == "latest" {
            let newest = releases.into_iter().max_by_key(|r| r["counter"].as_u64());
            return newest.ok_or_else(|| Failure::not_found(what, "the fleet has no release yet"));
        }
        // A version is named as its tag is, too.
        let version = word.strip_prefix('v').filter(|v| v.starts_with(|c: char| c.is_ascii_digit()));
        let version = version.unwrap_or(word);
        let fits = |release: &Value| {
            text(release, "version") == version
                || (word.len() >= 4 && text(release, "id").starts_with(word))
                || (word.len() >= 7 && text(release, "commit").starts_with(word))
        };
        let mut found: Vec<Value> = releases.into_iter().filter(fits).collect();
        match (found.len(), found.pop()) {
            (1, Some(release)) => Ok(release),
            (0, _) => Err(Failure::not_found(what, format!("fleet {} has no such release", fleet.slug))
                .next(format!("copal release list --fleet {}", fleet.slug))),
            (n, _) => Err(Failure::usage(what, format!("{n} releases fit")).next("use more of the id")),
        }
    }

    /// Asks before something that cannot be taken back; `--yes` answers.
    ///
    /// # Errors
    /// Where the answer is no, or nobody is there to ask.
    pub fn confirm(&self, question: &str) -> Result<()> {
        if self.globals.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(
                Failure::usage("go on", format!("nobody is there to answer: {question}")).next("add --yes")
            );
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        std::io::stdin()
            .lock()
            .take(100)
            .read_line(&mut answer)
            .map_err(|e| Failure::local("read the answer", e))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(Failure::new(Kind::Failure, "declined", "go on", "the answer was no; nothing was changed"))
        }
    }
}

/// Uploads one Root.
///
/// # Errors
/// The server's refusal.
pub async fn upload_root(api: &Api, slug: &str, envelope: &Envelope) -> Result<()> {
    let what = format!("upload the root of fleet {slug}");
    let path = format!("/fleets/{}/root", seg(slug));
    api.put_document(&what, reqwest::Method::PUT, &path, envelope.to_bytes()).await.map(drop)
}

/// Reads a secret: without echo from a terminal, else all of standard input without its last line break.
///
/// # Errors
/// Where nothing comes, or more than 64 KiB.
pub fn read_secret(what: &str) -> Result<Zeroizing<String>> {
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(format!("{what}: "))
            .map(Zeroizing::new)
            .map_err(|e| Failure::local(format!("read the {what}"), e));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    std::io::stdin()
        .lock()
        .take((64 << 10) + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::local(format!("read the {what} from standard input"), e))?;
    one_value(what, &bytes)
}

/// A value from bytes: text of at most 64 KiB, without its last line break.
///
/// # Errors
/// Where it is too long, empty or no text.
pub fn one_value(what: &str, bytes: &[u8]) -> Result<Zeroizing<String>> {
    let bad = |why: &str| Failure::usage(format!("read the {what}"), why);
    if bytes.len() > 64 << 10 {
        return Err(bad("it is longer than 64 KiB"));
    }
    let value = std::str::from_utf8(bytes).map_err(|_| bad("it is not UTF-8 text"))?;
    let value = value.strip_suffix('\n').unwrap_or(value);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() {
        return Err(bad("nothing was given"));
    }
    Ok(Zeroizing::new(value.to_owned()))
}

/// Asks for the passphrase of a key: the file `COPAL_KEY_PASSPHRASE_FILE` names, else a terminal.
///
/// # Errors
/// Where neither is there.
pub fn passphrase_of(path: &std::path::Path) -> Result<Zeroizing<String>> {
    if let Some(file) = std::env::var_os("COPAL_KEY_PASSPHRASE_FILE") {
        let bytes = crate::home::read_private(std::path::Path::new(&file))?.unwrap_or_default();
        return one_value("passphrase", &bytes);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            format!("open the key {}", path.display()),
            "it is protected by a passphrase and no terminal is there to ask for it",
        )
        .next("set COPAL_KEY_PASSPHRASE_FILE to a file of mode 600"));
    }
    read_secret(&format!("passphrase of {}", path.display()))
}
