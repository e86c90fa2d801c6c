use serde_json::json;

use super::*;
use crate::{
    documents::{Assignment, Release, Root},
    envelope::MAX_SIGNATURES,
    testing::{OwnerKeys, sign},
    verify,
};

#[test]
fn an_oversized_document_is_refused_before_it_is_parsed() {
    for (max, result) in [
        (64 << 10, Envelope::parse::<Root>(&vec![b' '; (64 << 10) + 1])),
        (256 << 10, Envelope::parse::<Assignment>(&vec![b' '; (256 << 10) + 1])),
        (1 << 20, Envelope::parse::<Release>(&vec![b' '; (1 << 20) + 1])),
    ] {
        assert_eq!(code(result), Code::TooLarge, "{max}");
    }
    assert_eq!(
        code(Envelope::parse::<Root>(&vec![b' '; 64 << 10])),
        Code::Envelope,
        "at the bound it is read"
    );
}

#[test]
fn only_the_exact_shape_is_an_envelope() {
    let good = json!({"payload": "e30=", "payloadType": "t", "signatures": []}).to_string();
    assert!(Envelope::parse_any(good.as_bytes()).is_ok());
    let keyid = "0".repeat(64);
    let sig = BASE64.encode([0; 64]);
    for bad in [
        String::new(),
        "[]".to_owned(),
        "null".to_owned(),
        r#"{"payload":"e30=","payloadType":"t"}"#.to_owned(),
        r#"{"payload":"e30=","payloadType":"t","signatures":null}"#.to_owned(),
        r#"{"payload":"e30=","payloadType":"t","signatures":[],"extra":1}"#.to_owned(),
        r#"{"payload":"e30=","payload":"e30=","payloadType":"t","signatures":[]}"#.to_owned(),
        r#"{"payload":"e30","payloadType":"t","signatures":[]}"#.to_owned(),
        r#"{"payload":"e31=","payloadType":"t","signatures":[]}"#.to_owned(),
        r#"{"payload":"e-_=","payloadType":"t","signatures":[]}"#.to_owned(),
        "{\"payload\":\"e3\\n0=\",\"payloadType\":\"t\",\"signatures\":[]}".to_owned(),
        format!("{good}{good}"),
        format!(
            r#"{{"payload":"e30=","payloadType":"t","signatures":[{{"keyid":"{keyid}","sig":"AAAA"}}]}}"#
        ),
        format!(r#"{{"payload":"e30=","payloadType":"t","signatures":[{{"keyid":"x","sig":"{sig}"}}]}}"#),
        format!(
            r#"{{"payload":"e30=","payloadType":"t","signatures":[{{"keyid":"{keyid}","sig":"{sig}","alg":"none"}}]}}"#
        ),
        format!(
            r#"{{"payload":"e30=","payloadType":"t","signatures":[{{"keyid":"{}","sig":"{sig}"}}]}}"#,
            "A".repeat(64)
        ),
        r#"{"payload":{"a":{"b":{"c":{}}}},"payloadType":"t","signatures":[]}"#.to_owned(),
    ] {
        assert_eq!(code(Envelope::parse_any(bad.as_bytes())), Code::Envelope, "{bad}");
    }
}

#[test]
fn more_than_sixteen_signatures_are_refused() {
    let one = json!({"keyid": "0".repeat(64), "sig": BASE64.encode([0; 64])});
    let with = |n: usize| {
        json!({"payload": "e30=", "payloadType": "t", "signatures": vec![one.clone(); n]}).to_string()
    };
    assert!(Envelope::parse_any(with(MAX_SIGNATURES).as_bytes()).is_ok());
    assert_eq!(code(Envelope::parse_any(with(MAX_SIGNATURES + 1).as_bytes())), Code::Envelope);
}

#[test]
fn a_release_is_never_taken_for_an_assignment() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let release = sign(&keys.release(1), &[&keys.assign]);
    assert_eq!(code(Envelope::parse::<Assignment>(&release.to_bytes())), Code::PayloadType);
    let judged = verify::assignment(&root, &keys.identity(), &Default::default(), &release);
    assert_eq!(code(judged), Code::PayloadType, "also where the caller parsed it as anything");
}

#[test]
fn an_edited_type_breaks_the_signature() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let text = String::from_utf8(sign(&keys.release(1), &[&keys.assign]).to_bytes()).unwrap();
    let retyped = text.replace("copal.release.v1", "copal.assignment.v1");
    let envelope = Envelope::parse::<Assignment>(retyped.as_bytes()).unwrap();
    let judged = verify::assignment(&root, &keys.identity(), &Default::default(), &envelope);
    assert_eq!(code(judged), Code::SigInvalid);
}

#[test]
fn an_envelope_survives_the_wire_byte_for_byte() {
    let keys = OwnerKeys::fixed();
    let envelope = sign(&keys.release(1), &[&keys.builder, &keys.release]);
    let bytes = envelope.to_bytes();
    let read = Envelope::parse::<Release>(&bytes).unwrap();
    assert_eq!(read, envelope);
    assert_eq!(read.to_bytes(), bytes);
}

#[test]
fn a_key_twice_in_a_payload_is_refused_whatever_the_two_say() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let payload = serde_json::to_string(&keys.release(7)).unwrap();
    let doubled = payload.replacen("\"counter\":7", "\"counter\":7,\"counter\":9", 1);
    assert_ne!(payload, doubled);
    let envelope = signed_text::<Release>(&doubled, &[&keys.builder]);
    assert_eq!(code(super::releases::install(&keys, &root, &envelope)), Code::DupKey);

    let env = r#"{"web":{"A":"1","A":"2"}}"#;
    let payload = serde_json::to_string(&keys.assignment(1, &[])).unwrap();
    let doubled = format!("{},\"env\":{{\"{}\":{env}}}}}", payload.strip_suffix('}').unwrap(), keys.app_id);
    let envelope = signed_text::<Assignment>(&doubled, &[&keys.assign]);
    let judged = verify::assignment(&root, &keys.identity(), &Default::default(), &envelope);
    assert_eq!(code(judged), Code::DupKey, "inside a map too");
}

#[test]
fn a_payload_of_another_shape_is_refused_though_rightly_signed() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let base = keys.release(7);
    let edits: [fn(&mut Value); 8] = [
        |v| v["unknown"] = json!(1),
        |v| v["counter"] = json!("7"),
        |v| v["counter"] = json!(9_007_199_254_740_992_u64),
        |v| v["counter"] = json!(7.0),
        |v| v["version"] = json!("1"),
        |v| v["services"]["web"]["spec"]["unknown"] = json!(1),
        |v| v["services"]["../web"] = json!({"spec": {}, "images": {}}),
        |v| v["ext"] = (0..40).fold(json!(1), |inner, _| json!([inner])),
    ];
    for (n, edit) in edits.into_iter().enumerate() {
        let envelope = edited(&base, &[&keys.builder], edit);
        assert_eq!(code(super::releases::install(&keys, &root, &envelope)), Code::Payload, "edit {n}");
    }
    let envelope = signed_text::<Release>("not json", &[&keys.builder]);
    assert_eq!(code(super::releases::install(&keys, &root, &envelope)), Code::Payload);
}

#[test]
fn what_a_later_version_adds_under_ext_is_no_obstacle() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let envelope = edited(&keys.release(7), &[&keys.builder], |v| v["ext"] = json!({"later": [1, "two"]}));
    assert!(super::releases::install(&keys, &root, &envelope).is_ok());
}

#[test]
fn another_format_version_is_named_as_such_though_its_fields_differ() {
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&keys.root());
    let envelope = edited(&keys.release(7), &[&keys.builder], |v| {
        v["spec"] = json!(2);
        v["field_of_version_2"] = json!(true);
    });
    assert_eq!(code(super::releases::install(&keys, &root, &envelope)), Code::Spec);
}

#[test]
fn a_report_counts_only_under_the_devices_own_key_and_fleet() {
    use crate::documents::{BuildRecord, SPEC};
    let keys = OwnerKeys::fixed();
    let record = BuildRecord {
        spec: SPEC,
        fleet_id: keys.fleet_id,
        app_id: keys.app_id,
        commit: String::new(),
        source: "tree".to_owned(),
        platform: "linux/amd64".to_owned(),
        builder: "docker 27".to_owned(),
        started_at: 1,
        finished_at: 2,
        images: Default::default(),
        external: Default::default(),
        ext: None,
    };
    let judge = |envelope: &Envelope| {
        verify::signed_by::<BuildRecord>(&keys.builder.public(), keys.fleet_id, envelope)
    };
    assert_eq!(judge(&sign(&record, &[&keys.builder])).unwrap().into_inner(), record);
    assert_eq!(code(judge(&sign(&record, &[]))), Code::SigMissing);
    assert_eq!(code(judge(&sign(&record, &[&keys.device]))), Code::SigUnknownKey);
    let good = sign(&record, &[&keys.builder]);
    let broken = with_signatures(&good, &[(keys.builder.public().id(), [1; 64])]);
    assert_eq!(code(judge(&broken)), Code::SigInvalid);
    let foreign = BuildRecord { fleet_id: OwnerKeys::numbered(1).fleet_id, ..record.clone() };
    assert_eq!(code(judge(&sign(&foreign, &[&keys.builder]))), Code::Fleet);
    assert_eq!(code(judge(&sign(&keys.release(1), &[&keys.builder]))), Code::PayloadType);
}
