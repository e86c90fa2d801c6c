//! Whether devices prove a lock. The cloud carries the proof and is not believed: a device counts only by a Report
//! signed with a key that its card's introduction secret vouches for, and a card without a device is missed.
//! Pure: what the cloud answered comes in.

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::{LockState, Report},
    envelope::Envelope,
    ids::{DeviceId, FleetId, Sha256Hex},
    keys::PublicKey,
    verify,
};

use crate::home::fleets::Introduction;

/// What every device must show.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The fleet.
    pub fleet_id: FleetId,
    /// The version of the locking root.
    pub root_version: u64,
    /// Its payload hash.
    pub root_sha256: Sha256Hex,
    /// Locked, or (after an unlock) merely on the new root.
    pub lock: LockState,
}

/// A device as the cloud lists it, with the newest Report it has.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Its id.
    pub device_id: DeviceId,
    /// Its name, for people.
    pub name: String,
    /// The key the cloud says it has.
    pub public_key: Option<PublicKey>,
    /// Which introduction the cloud says it showed.
    pub introduction_id: Option<String>,
    /// The proof of it.
    pub introduction_mac: Option<Sha256Hex>,
    /// The bytes of its newest Report.
    pub report: Option<Vec<u8>>,
}

/// How a device, or a card without one, stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its signed Report shows the lock.
    Proven,
    /// It is known, and has not shown it yet.
    Waiting(String),
    /// What the cloud shows of it proves nothing, or proves something else.
    Unproven(String),
}

/// One line of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The device, or absent for a card without one.
    pub device_id: Option<DeviceId>,
    /// For people.
    pub name: String,
    /// How it stands.
    pub standing: Standing,
    /// The key that the introduction vouches for, to be remembered.
    pub vouched: Option<(String, PublicKey)>,
}

/// Judges every device the cloud lists, and every card made here that none of them came from.
#[must_use]
pub fn judge(wanted: &Wanted, cards: &[Introduction], claims: &[Claim]) -> Vec<Line> {
    let by_id: BTreeMap<&str, &Introduction> = cards.iter().map(|card| (card.id.as_str(), card)).collect();
    let mut present: BTreeSet<(String, [u8; 32])> = BTreeSet::new();
    let mut lines = Vec::new();
    for claim in claims {
        let line = |standing, vouched| Line {
            device_id: Some(claim.device_id),
            name: claim.name.clone(),
            standing,
            vouched,
        };
        match vouch(&by_id, claim) {
            Err(why) => lines.push(line(Standing::Unproven(why), None)),
            Ok((card, key)) => {
                present.insert((card.id.clone(), *key.as_bytes()));
                let vouched = Some((card.id.clone(), key));
                lines.push(line(judge_report(wanted, claim, &key), vouched));
            }
        }
    }
    for card in cards {
        let name = card.name.clone().unwrap_or_else(|| format!("card {}", card.id));
        let missed = |why: &str| Line {
            device_id: None,
            name: name.clone(),
            standing: Standing::Unproven(why.to_owned()),
            vouched: None,
        };
        let hidden =
            card.keys_seen.iter().filter(|key| !present.contains(&(card.id.clone(), *key.as_bytes())));
        lines.extend(hidden.map(|_| missed("was seen before, and the server does not list it any more")));
        if card.keys_seen.is_empty() && !present.iter().any(|(id, _)| *id == card.id) {
            lines.push(missed("a copal.json was made for it, and no device of it is listed"));
        }
    }
    lines
}

/// A device whose key a card of this machine vouches for.
#[derive(Debug, Clone)]
pub struct Vouched {
    /// Its key.
    pub key: PublicKey,
    /// What this machine called it when its card was made.
    pub name: Option<String>,
    /// Names the card.
    pub card: String,
}

impl Vouched {
    /// Whether it is the one a person's word means, as far as this machine knows: the server says which device a name means, and
    /// could name another of the same owner's. The id of a device is signed over; its name is not.
    #[must_use]
    pub fn is_meant_by(&self, word: &str, device: DeviceId) -> bool {
        const ENOUGH: usize = 8;
        self.name.as_deref() == Some(word)
            || (word.len() >= ENOUGH && device.to_string().starts_with(&word.to_ascii_lowercase()))
    }
}

/// The key of a device that its card vouches for, and which card that is.
///
/// # Errors
/// Why none does.
pub fn vouched_key(cards: &[Introduction], claim: &Claim) -> Result<Vouched, String> {
    let by_id: BTreeMap<&str, &Introduction> = cards.iter().map(|card| (card.id.as_str(), card)).collect();
    let (card, key) = vouch(&by_id, claim)?;
    Ok(Vouched { key, name: card.name.clone(), card: card.id.clone() })
}

fn vouch<'a>(
    cards: &BTreeMap<&str, &'a Introduction>,
    claim: &Claim,
) -> Result<(&'a Introduction, PublicKey), String> {
    let key = claim.public_key.ok_or("the server shows no usable key of it")?;
    let card = claim
        .introduction_id
        .as_deref()
        .and_then(|id| cards.get(id))
        .ok_or("it was not introduced by a copal.json of this machine")?;
    let mac = claim.introduction_mac.ok_or("it showed no introduction")?;
    if !card.vouches_for(&key, &mac) {
        return Err(
            "its key is not the one its card was introduced with: the server may have made it up".to_owned()
        );
    }
    Ok((card, key))
}

fn judge_report(wanted: &Wanted, claim: &Claim, key: &PublicKey) -> Standing {
    let Some(bytes) = &claim.report else {
        return Standing::Waiting("it has not reported yet".to_owned());
    };
    let report = match Envelope::parse::<Report>(bytes)
        .and_then(|envelope| verify::signed_by::<Report>(key, wanted.fleet_id, &envelope))
    {
        Ok(report) => report,
        Err(error) => return Standing::Unproven(format!("its report is refused: {error}")),
    };
    if report.device_id != claim.device_id {
        return Standing::Unproven(format!("its report is of device {}", report.device_id));
    }
    if report.root_version < wanted.root_version {
        return Standing::Waiting(format!("it trusts root {} still", report.root_version));
    }
    // A newer root is another machine's work; this proof is of one root.
    if report.root_version > wanted.root_version || report.root_sha256 != wanted.root_sha256 {
        return Standing::Unproven(format!("it trusts another root {}", report.root_version));
    }
    if wanted.lock == LockState::Locked && report.lock != LockState::Locked {
        return Standing::Unproven("it trusts the new root and says that it is not locked".to_owned());
    }
    Standing::Proven
}

#[cfg(test)]
mod tests {
    use copal_protocol::{documents::SPEC, keys::SigningKey};

    use super::*;

    fn fleet() -> FleetId {
        FleetId::from_bytes([1; 16])
    }

    fn wanted() -> Wanted {
        Wanted {
            fleet_id: fleet(),
            root_version: 2,
            root_sha256: Sha256Hex::of(b"root 2"),
            lock: LockState::Locked,
        }
    }

    fn device_key() -> SigningKey {
        SigningKey::from_seed(&[5; 32])
    }

    fn card() -> Introduction {
        Introduction {
            id: "aa".to_owned(),
            secret: "s3cret".to_owned(),
            fleet_id: fleet(),
            name: Some("porch-1".to_owned()),
            created_at: 0,
            keys_seen: Vec::new(),
        }
    }

    fn report(root_version: u64, lock: LockState) -> Report {
        Report {
            spec: SPEC,
            fleet_id: fleet(),
            device_id: DeviceId::from_bytes([7; 16]),
            boot_id: "0".repeat(32),
            report_counter: 3,
            root_version,
            root_sha256: Sha256Hex::of(format!("root {root_version}").as_bytes()),
            lock,
            assign_epoch: 1,
            seq_accepted: 1,
            seq_applied: 1,
            unfresh: false,
            running: BTreeMap::new(),
            committed: BTreeMap::new(),
            reason: None,
            progress: None,
            host: None,
            agent: None,
            health: None,
            agent_version: "0.1.0".to_owned(),
            os_version: String::new(),
            arch: "amd64".to_owned(),
            time: 0,
            ext: None,
        }
    }

    fn claim(report: &Report, signer: &SigningKey) -> Claim {
        let key = device_key().public();
        Claim {
            device_id: report.device_id,
            name: "porch-1".to_owned(),
            public_key: Some(key),
            introduction_id: Some("aa".to_owned()),
            introduction_mac: Some(copal_protocol::enrol::introduction_mac("s3cret", fleet(), &key)),
            report: Some(Envelope::sign(report, &[signer]).unwrap().to_bytes()),
        }
    }

    fn standing(claims: &[Claim]) -> Vec<Standing> {
        judge(&wanted(), &[card()], claims).into_iter().map(|line| line.standing).collect()
    }

    #[test]
    fn a_signed_report_of_an_introduced_device_proves_the_lock() {
        let claim = claim(&report(2, LockState::Locked), &device_key());
        assert_eq!(standing(std::slice::from_ref(&claim)), [Standing::Proven]);
        let line = &judge(&wanted(), &[card()], &[claim])[0];
        assert_eq!(line.vouched, Some(("aa".to_owned(), device_key().public())));
    }

    #[test]
    fn a_device_behind_is_waited_for() {
        let behind = claim(&report(1, LockState::Open), &device_key());
        let silent = Claim { report: None, ..behind.clone() };
        for claim in [behind, silent] {
            assert!(matches!(standing(&[claim])[..], [Standing::Waiting(_)]));
        }
    }

    #[test]
    fn a_report_the_cloud_made_up_proves_nothing() {
        let forger = SigningKey::from_seed(&[6; 32]);
        let locked = report(2, LockState::Locked);
        let forged = claim(&locked, &forger);
        let mut own_key = forged.clone();
        // With its own key in the device's place, the mac no longer fits.
        own_key.public_key = Some(forger.public());
        let mut own_card = own_key.clone();
        own_card.introduction_id = Some("bb".to_owned());
        let mut no_mac = forged.clone();
        no_mac.introduction_mac = None;
        let mut of_another = claim(&locked, &device_key());
        of_another.device_id = DeviceId::from_bytes([8; 16]);
        let open = claim(&report(2, LockState::Open), &device_key());
        let other_root = claim(&Report { root_sha256: Sha256Hex::of(b"x"), ..locked }, &device_key());
        for claim in [forged, own_key, own_card, no_mac, of_another, open, other_root] {
            let lines = standing(std::slice::from_ref(&claim));
            assert!(matches!(lines[0], Standing::Unproven(_)), "{lines:?} {claim:?}");
        }
    }

    #[test]
    fn a_card_without_a_device_and_a_device_hidden_later_are_missed() {
        assert!(matches!(standing(&[])[..], [Standing::Unproven(_)]));
        let mut card = card();
        card.keys_seen = vec![device_key().public(), SigningKey::from_seed(&[9; 32]).public()];
        let claim = claim(&report(2, LockState::Locked), &device_key());
        let lines = judge(&wanted(), &[card], &[claim]);
        assert_eq!(lines[0].standing, Standing::Proven);
        assert!(matches!(lines[1].standing, Standing::Unproven(_)));
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_word_means_the_device_its_card_was_made_for_whatever_name_the_server_gives_it() {
        let device = DeviceId::from_bytes([0xab; 16]);
        let of = |name: Option<&str>| Vouched {
            key: device_key().public(),
            name: name.map(ToOwned::to_owned),
            card: "aa".to_owned(),
        };
        assert!(of(Some("porch-1")).is_meant_by("porch-1", device));
        assert!(
            of(None).is_meant_by("abababab", device) && of(None).is_meant_by(&device.to_string(), device)
        );
        // The server gave the name of one to another, or the card has none to compare.
        assert!(!of(Some("cellar-1")).is_meant_by("porch-1", device));
        assert!(!of(None).is_meant_by("porch-1", device));
        assert!(!of(Some("cellar-1")).is_meant_by("ab", device), "two digits are soon found");
    }
}
