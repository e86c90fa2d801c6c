//! What an attacker can send: arbitrary bytes, and valid envelopes changed anywhere.

use proptest::prelude::*;

use super::{releases::install, *};
use crate::{
    documents::{Assignment, Freshness, Release, Report, Root},
    testing::{OwnerKeys, sign},
    verify,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_are_refused_with_a_code_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for refused in [
            Envelope::parse::<Root>(&bytes).map(|_| ()),
            Envelope::parse::<Assignment>(&bytes).map(|_| ()),
            Envelope::parse::<Release>(&bytes).map(|_| ()),
            Envelope::parse::<Freshness>(&bytes).map(|_| ()),
            Envelope::parse::<Report>(&bytes).map(|_| ()),
        ] {
            prop_assert_eq!(refused.unwrap_err().code, Code::Envelope);
        }
    }

    #[test]
    fn a_signed_payload_of_arbitrary_bytes_is_refused_and_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..400)) {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let bytes = signed_bytes(Release::PAYLOAD_TYPE, &payload, &[&keys.builder]);
        let envelope = Envelope::parse::<Release>(&bytes).unwrap();
        prop_assert!(install(&keys, &root, &envelope).is_err());
        let bytes = signed_bytes(Root::PAYLOAD_TYPE, &payload, &[&keys.root]);
        let envelope = Envelope::parse::<Root>(&bytes).unwrap();
        prop_assert!(verify::next_root(&root, &envelope).is_err());
    }

    #[test]
    fn a_valid_envelope_changed_anywhere_never_verifies_as_something_else(
        at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let good = sign(&keys.release(7), &[&keys.builder]);
        let mut bytes = good.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(envelope) = Envelope::parse::<Release>(&bytes)
            && let Ok(accepted) = install(&keys, &root, &envelope)
        {
            // The key id is a hint: changing it changes nothing. Any other change must have been refused.
            prop_assert_eq!(accepted.sha256(), good.payload_sha256());
            prop_assert_eq!(envelope.signatures()[0].sig, good.signatures()[0].sig);
        }
    }

    #[test]
    fn a_valid_envelope_cut_or_prolonged_never_verifies(cut in any::<prop::sample::Index>(), tail in "[^ \\t\\r\\n]{1,8}") {
        let keys = OwnerKeys::fixed();
        let bytes = sign(&keys.assignment(1, &[]), &[&keys.assign]).to_bytes();
        prop_assert!(Envelope::parse::<Assignment>(&bytes[..cut.index(bytes.len())]).is_err());
        let mut longer = bytes;
        longer.extend_from_slice(tail.as_bytes());
        prop_assert!(Envelope::parse::<Assignment>(&longer).is_err());
    }

    #[test]
    fn an_edited_payload_under_the_old_signature_never_verifies(counter in 8_u64..1000, floor in 0_u64..8) {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let good = sign(&keys.release(7), &[&keys.builder]);
        let edited = sign(&Release { rollback_floor: floor, ..keys.release(counter) }, &[]);
        let forged = with_signatures(&edited, &[(keys.builder.public().id(), good.signatures()[0].sig)]);
        prop_assert_eq!(code(install(&keys, &root, &forged)), Code::SigInvalid);
    }

    #[test]
    fn documents_read_back_as_they_were_written(
        counter in 1_u64..=crate::documents::MAX_INTEGER, seq in 0_u64..=crate::documents::MAX_INTEGER,
        value in "\\PC{0,40}", commit in "[0-9a-f]{0,40}"
    ) {
        let keys = OwnerKeys::fixed();
        let root = keys.trusted(&keys.root());
        let release = Release { commit, ..keys.release(counter) };
        let accepted = install(&keys, &root, &sign(&release, &[&keys.builder])).unwrap();
        prop_assert_eq!(accepted.into_inner(), release);
        let mut assignment = keys.assignment(seq, &[]);
        let env = [("A".to_owned(), value)].into();
        assignment.env.insert(keys.app_id, [("web".parse().unwrap(), env)].into());
        let envelope = Envelope::parse::<Assignment>(&sign(&assignment, &[&keys.assign]).to_bytes()).unwrap();
        let accepted = verify::assignment(&root, &keys.identity(), &Default::default(), &envelope).unwrap();
        prop_assert_eq!(accepted.into_inner(), assignment);
    }
}
