//! The log under the hands of someone who can write the database.

use copal_protocol::audit::How;
use serde_json::json;

use super::{chain_old, check, note, record_as};
use crate::{
    auth::{Caller, Role},
    store::Db,
    testing::Cloud,
};

async fn acts(db: &Db, count: usize) {
    for n in 0..count {
        let mut tx = db.write().await.unwrap();
        let detail = json!({"z": n, "a": ["é", null]});
        note(&mut tx, &Caller::system(), "fleet.deploy", &format!("fleet:{n}"), detail).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// A database with six acts, and the hash of each.
async fn log() -> (tempfile::TempDir, Db, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("copal.db")).await.unwrap();
    acts(&db, 6).await;
    let hashes = sqlx::query_scalar("SELECT hash FROM audit ORDER BY id").fetch_all(db.read()).await.unwrap();
    (dir, db, hashes)
}

/// Does what our own triggers forbid.
async fn tamper(db: &Db, statements: &[&'static str]) {
    let mut tx = db.write().await.unwrap();
    for trigger in
        ["DROP TRIGGER IF EXISTS audit_rows_stay", "DROP TRIGGER IF EXISTS audit_rows_stay_as_they_are"]
    {
        sqlx::query(trigger).execute(&mut *tx).await.unwrap();
    }
    for statement in statements {
        sqlx::query(*statement).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn broken(db: &Db) -> Option<(i64, How)> {
    check(db, None).await.unwrap().broken.map(|b| (b.id, b.how))
}

#[tokio::test]
async fn a_row_that_was_tampered_with_breaks_the_chain_there() {
    for change in [
        "UPDATE audit SET who = 'nobody' WHERE id = 3",
        "UPDATE audit SET at = at - 60 WHERE id = 3",
        "UPDATE audit SET why = 'asked to' WHERE id = 3",
        "UPDATE audit SET detail = '{}' WHERE id = 3",
        "UPDATE audit SET detail = 'no json' WHERE id = 3",
        "UPDATE audit SET hash = '' WHERE id = 3",
    ] {
        let (_dir, db, _) = log().await;
        assert_eq!(broken(&db).await, None);
        tamper(&db, &[change]).await;
        assert_eq!(broken(&db).await, Some((3, How::Changed)), "{change}");
        // Starting again mends nothing, and what is written after does not hide it.
        chain_old(&db).await.unwrap();
        acts(&db, 2).await;
        assert_eq!(broken(&db).await, Some((3, How::Changed)), "{change}");
    }
}

#[tokio::test]
async fn a_row_removed_or_moved_within_is_seen() {
    let (_dir, db, _) = log().await;
    tamper(&db, &["DELETE FROM audit WHERE id = 4"]).await;
    assert_eq!(broken(&db).await, Some((5, How::Gap)));
    let (_dir, db, _) = log().await;
    tamper(
        &db,
        &[
            "UPDATE audit SET id = 99 WHERE id = 2",
            "UPDATE audit SET id = 2 WHERE id = 3",
            "UPDATE audit SET id = 3 WHERE id = 99",
        ],
    )
    .await;
    assert_eq!(broken(&db).await, Some((2, How::Changed)));
}

#[tokio::test]
async fn an_end_that_was_cut_off_is_seen_by_who_noted_the_head() {
    let (_dir, db, hashes) = log().await;
    tamper(&db, &["DELETE FROM audit WHERE id > 4"]).await;
    assert_eq!(broken(&db).await, None, "what is left fits together");
    let verdict = check(&db, Some(&hashes[5])).await.unwrap();
    assert!(!verdict.good(true) && verdict.since.is_none(), "{verdict:?}");
    assert_eq!(check(&db, Some(&hashes[3])).await.unwrap().since, Some(4));
    // The next act shows it to everybody: its id is not that of a row that was removed.
    acts(&db, 1).await;
    assert_eq!(broken(&db).await, Some((7, How::Gap)));
}

#[tokio::test]
async fn acts_at_the_same_time_make_one_chain() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let asked: Vec<_> = (0..24)
        .map(|n| {
            let (router, anna) = (cloud.router.clone(), anna.clone());
            tokio::spawn(async move {
                let body = json!({"name": format!("t{n}"), "scope": "read"}).to_string();
                let request = axum::http::Request::post("/api/v1/tokens")
                    .header("authorization", format!("Bearer {anna}"))
                    .header("content-type", "application/json")
                    .body(axum::body::Body::from(body))
                    .unwrap();
                tower::ServiceExt::oneshot(router, request).await.unwrap().status()
            })
        })
        .collect();
    // Another process on the same data folder, as `copal-cloud token create` is.
    let beside = Db::open(&cloud.app.config.database()).await.unwrap();
    acts(&beside, 12).await;
    for one in asked {
        assert!(one.await.unwrap().is_success());
    }
    let verdict = check(&cloud.app.db, None).await.unwrap();
    assert_eq!((verdict.rows, verdict.broken), (36, None));
}

#[tokio::test]
async fn an_act_that_did_not_happen_leaves_no_row_and_no_gap() {
    let (_dir, db, _) = log().await;
    let mut tx = db.write().await.unwrap();
    record_as(&mut tx, "anna", "local", "fleet.delete", "fleet:x", json!(null)).await.unwrap();
    tx.rollback().await.unwrap();
    acts(&db, 1).await;
    let verdict = check(&db, None).await.unwrap();
    assert_eq!((verdict.rows, verdict.broken, verdict.head.map(|h| h.0)), (7, None, Some(7)));
}

#[tokio::test]
async fn rows_from_before_there_were_hashes_are_chained_once() {
    let (_dir, db, hashes) = log().await;
    tamper(&db, &["UPDATE audit SET hash = ''", "DELETE FROM meta WHERE key = 'audit_chained'"]).await;
    chain_old(&db).await.unwrap();
    let verdict = check(&db, Some(&hashes[5])).await.unwrap();
    assert!(verdict.good(true), "the same rows have the same hashes: {verdict:?}");
    acts(&db, 1).await;
    assert_eq!(broken(&db).await, None);
}

#[tokio::test]
async fn this_program_cannot_change_or_remove_a_row() {
    let (_dir, db, _) = log().await;
    for statement in ["UPDATE audit SET who = 'nobody' WHERE id = 1", "DELETE FROM audit WHERE id = 1"] {
        let mut tx = db.write().await.unwrap();
        let refused = sqlx::query(statement).execute(&mut *tx).await.unwrap_err().to_string();
        assert!(refused.contains("never"), "{refused}");
    }
    assert_eq!(check(&db, None).await.unwrap().rows, 6);
}

#[tokio::test]
async fn the_api_shows_hashes_and_why_and_its_rows_verify() {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", Role::Owner).await;
    let body = json!({"slug": "porch", "device_type": "x", "arch": "arm64"});
    let ask = |why: &'static [u8]| {
        let request = axum::http::Request::post("/api/v1/fleets")
            .header("authorization", format!("Bearer {anna}"))
            .header("content-type", "application/json")
            .header("x-copal-why", axum::http::HeaderValue::from_bytes(why).unwrap());
        cloud.send(request.body(axum::body::Body::from(body.to_string())).unwrap())
    };
    assert_eq!(ask(&[0xff]).await.code(), "why_invalid");
    assert!(ask("Ticket 42, für Anna".as_bytes()).await.status.is_success());
    let page = cloud.call("GET", "/api/v1/audit", &anna, None).await.json();
    assert_eq!(page["items"][0]["why"], "Ticket 42, für Anna");
    let rows: Vec<copal_protocol::audit::Row> = serde_json::from_value(page["items"].clone()).unwrap();
    let mut chain = copal_protocol::audit::Chain::since(None);
    for row in rows {
        assert!(chain.older(row));
    }
    let verdict = chain.end();
    assert!(verdict.good(false), "{verdict:?}");
}
