//! What somebody tries who has a token of one fleet, or speaks git without git's manners.

use std::io::Write as _;

use copal_e2e::{
    cloud::Cloud,
    eventually, http,
    repo::{Repo, STAY, Services},
    text,
    world::World,
};
use copal_protocol::{ids::Digest, keys::PublicKey};
use serde_json::{Value, json};

const SHORT: &str = "labels: {io.copal.update.healthy-after: 2s}\nstop_grace_period: 1s";

/// A fleet `other`, and a token of its own for everything that may be done to it.
async fn neighbour(world: &World) -> (String, String) {
    world.owner.fleet("other", &[]).await;
    let body = json!({"name": "neighbour", "scope": "full", "fleet": "other"});
    let made = world.cloud.call("POST", "/tokens", body).await;
    (made["token"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
}

async fn status(cloud: &Cloud, token: &str, method: &str, route: &str, body: Option<&str>) -> (u16, String) {
    let request = http().request(method.parse().unwrap(), format!("{}{route}", cloud.url));
    let mut request = request.basic_auth("x", Some(token));
    if route.starts_with("/api/") || token.starts_with("coreg_") {
        request = http().request(method.parse().unwrap(), format!("{}{route}", cloud.url)).bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_fleet_opens_no_route_of_another() {
    let world = World::new(1).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    let release = world.push_and_settle("first").await;
    let cloud = &world.cloud;
    let (token, _) = neighbour(&world).await;
    let device = world.device(0).await.unwrap()["device_id"].as_str().unwrap().to_owned();
    let build = cloud.get("/fleets/porch/builds").await["items"][0]["id"].as_str().unwrap().to_owned();
    let enrolment = cloud.call("POST", "/fleets/porch/enrolment-tokens", json!({})).await;
    // A host release of the fleet's would answer no differently: the fleet is judged before it is looked for.
    let blob = json!({"sha256": "0".repeat(64), "size": 5});
    let upload = cloud.call("POST", "/fleets/porch/uploads", blob.clone()).await;
    let upload = upload["id"].as_str().unwrap().to_owned();
    let blob = blob.to_string();
    let before = cloud.get("/fleets/porch").await;

    let document = cloud.get("/openapi.json").await;
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let id = match path {
            p if p.contains("/devices/{id}") => device.as_str(),
            p if p.contains("/releases/{id}") => release.as_str(),
            p if p.contains("/builds/{id}") => build.as_str(),
            p if p.contains("/enrolment-tokens/{id}") => enrolment["id"].as_str().unwrap(),
            p if p.contains("/host-releases/{id}") => release.as_str(),
            p if p.contains("/uploads/{id}") => upload.as_str(),
            p if p.contains("/fleets/{slug}") => "",
            _ => continue,
        };
        let route = path.replace("{slug}", "porch").replace("{id}", id).replace("{version}", "1");
        let route = route.replace("{command}", &"0".repeat(32)).replace("{session}", &"0".repeat(32));
        let route = route.replace("{email}", "max@example.org");
        assert!(!route.contains('{'), "{route}");
        for method in methods.as_object().unwrap().keys() {
            let body = match (method.as_str(), path.rsplit('/').next().unwrap()) {
                ("put", "variables") => r#"{"name":"A","value":"b"}"#,
                ("post", "uploads") => blob.as_str(),
                ("post", "deploy" | "retry") if path.contains("/host-releases/") => r#"{"all":true}"#,
                ("post", "terminal") => r#"{"service":"app","reason":"mine"}"#,
                ("put", "terminals") => r#"{"stopped":true}"#,
                ("post", "commands") => r#"{"verb":"check_update"}"#,
                ("put", "{email}") => r#"{"role":"viewer"}"#,
                ("post", "withdraw") => r#"{"reason":"mine"}"#,
                ("post", "deploy") => r#"{"release":"latest"}"#,
                _ => "{}",
            };
            let query = match (method.as_str(), path.rsplit('/').next().unwrap()) {
                ("delete", "variables") => "?name=A",
                ("patch", _) if path.contains("/uploads/") => "?offset=0",
                ("delete", "{slug}") => "?force=true",
                _ => "",
            };
            let body = (!matches!(method.as_str(), "get" | "delete")).then_some(body);
            let method = method.to_ascii_uppercase();
            let (code, answer) = status(cloud, &token, &method, &format!("{route}{query}"), body).await;
            assert_eq!(code, 404, "{method} {route}: {answer}");
            tried += 1;
        }
    }
    assert!(tried > 25, "the document names the routes: {tried}");
    let (code, _) = status(cloud, &token, "GET", "/api/v1/events?fleet=porch", None).await;
    assert_eq!(code, 404);
    for service in ["git-upload-pack", "git-receive-pack"] {
        let route = format!("/git/porch.git/info/refs?service={service}");
        assert_eq!(status(cloud, &token, "GET", &route, None).await.0, 404, "{service}");
    }
    for (route, body) in [("/api/v1/fleets", r#"{"slug":"mine","device_type":"x","arch":"arm64"}"#)] {
        assert_eq!(status(cloud, &token, "POST", route, Some(body)).await.0, 403);
    }
    for route in ["/api/v1/audit", "/api/v1/users"] {
        assert_eq!(status(cloud, &token, "GET", route, None).await.0, 403, "{route}");
    }
    let after = cloud.get("/fleets/porch").await;
    assert_eq!(after["target_release"], before["target_release"]);
}

/// A digest of an image of the fleet `porch`.
async fn secret_layer(cloud: &Cloud, release: &str) -> Digest {
    let release = cloud.get(&format!("/releases/{release}")).await;
    let images = &release["services"]["app"]["images"];
    let image = images.as_object().unwrap().values().next().unwrap();
    image["config_digest"].as_str().unwrap().parse().unwrap()
}

async fn grant(cloud: &Cloud, token: &str, scope: &str) -> String {
    let route = format!("/registry/token?service=copal&scope={scope}");
    let (code, answer) = status(cloud, token, "GET", &route, None).await;
    assert_eq!(code, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_another_fleet_are_out_of_reach_by_registry_and_builder() {
    let mut world = World::new(0).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.repo.push_ok("first").await;
    let release = world.latest().await["id"].as_str().unwrap().to_owned();
    let (token, token_id) = neighbour(&world).await;
    let cloud = &world.cloud;
    let digest = secret_layer(cloud, &release).await;
    let at = |path: &str| format!("/v2/{path}");

    // Directly, and with what the token endpoint gives for a scope that was asked for and is not granted.
    let foreign = at(&format!("porch/app/blobs/{digest}"));
    assert_eq!(status(cloud, &cloud.token, "GET", &foreign, None).await.0, 200, "its owner has it");
    let empty = grant(cloud, &token, "repository:porch/app:pull,push%20repository:other/app:pull,push").await;
    for credential in [&token, &empty] {
        assert_eq!(status(cloud, credential, "GET", &foreign, None).await.0, 401);
        let upload = at("porch/app/blobs/uploads/");
        assert_eq!(status(cloud, credential, "POST", &upload, None).await.0, 401);
        // By mounting it into a repository of one's own; an upload begins instead, as if it were not there.
        let mount = at(&format!("other/app/blobs/uploads/?mount={digest}&from=porch/app"));
        assert_eq!(status(cloud, credential, "POST", &mount, None).await.0, 202);
        let own = at(&format!("other/app/blobs/{digest}"));
        assert_eq!(status(cloud, credential, "GET", &own, None).await.0, 404);
        assert_eq!(status(cloud, credential, "DELETE", &own, None).await.0 / 100, 4);
    }
    // Whether others have it is not told: what is not in one's own repository is not there.
    let own = at(&format!("other/app/blobs/{digest}"));
    assert_eq!(status(cloud, &token, "DELETE", &own, None).await.0, 404);

    // A grant ends with the token it was traded for.
    let scope = "repository:other/app:pull,push";
    let granted = grant(cloud, &token, scope).await;
    let upload = at("other/app/blobs/uploads/");
    assert_eq!(status(cloud, &granted, "POST", &upload, None).await.0, 202);

    // By the name the builder left it under, directly and through variables.
    let key: PublicKey = cloud.get("/server").await["builder_key"].as_str().unwrap().parse().unwrap();
    let left = format!("copal-build-{}/porch/app", &key.id().to_string()[..12]);
    let repo = Repo::new(cloud, "other");
    for (dockerfile, compose) in [
        (format!("FROM {left}\nCMD [\"/x\"]\n"), ""),
        (format!("FROM scratch\nCOPY --from={left}:latest / /\n"), ""),
        ("ARG B=scratch\nFROM $B\nCMD [\"/x\"]\n".to_owned(), left.as_str()),
        (format!("FROM {}\nCMD [\"/x\"]\n", &digest.to_string()["sha256:".len()..][..12]), ""),
    ] {
        repo.write("Dockerfile", &dockerfile);
        let args = if compose.is_empty() { String::new() } else { format!("      args: {{B: {compose}}}\n") };
        repo.write("docker-compose.yml", format!("services:\n  app:\n    build:\n      context: .\n{args}"));
        let output = repo.push("steal").await;
        assert!(!output.status.success(), "{dockerfile}: {}", text(&output));
        let said = text(&output);
        assert!(said.contains("another build") || said.contains("the id of an image"), "{said}");
    }

    cloud.call("DELETE", &format!("/tokens/{token_id}"), Value::Null).await;
    assert_eq!(status(cloud, &granted, "POST", &upload, None).await.0, 401, "the token was revoked");
    world.devices.clear();
}

/// A push spoken by hand: this ref, this object, an empty pack.
async fn push_by_hand(world: &World, name: &[u8], object: &str) -> (u16, String) {
    let pack = {
        let mut git = world.repo.command(&["pack-objects", "--stdout", "-q"]);
        let output = git.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        output.stdout
    };
    let mut line = format!("{} {object} ", "0".repeat(40)).into_bytes();
    line.extend_from_slice(name);
    line.extend_from_slice(b"\0 report-status agent=x");
    let mut body = Vec::new();
    write!(body, "{:04x}", line.len() + 4).unwrap();
    body.extend_from_slice(&line);
    body.extend_from_slice(b"0000");
    body.extend_from_slice(&pack);
    let request = http()
        .post(format!("{}/git/porch.git/git-receive-pack", world.cloud.url))
        .basic_auth("x", Some(&world.cloud.token))
        .header("content-type", "application/x-git-receive-pack-request")
        .body(body);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned())
}

/// Every file below a folder, without what git writes beside an ordinary push.
fn files(dir: &std::path::Path) -> Vec<String> {
    let output = std::process::Command::new("find").arg(dir).args(["-type", "f"]).output().unwrap();
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    names.retain(|n| !n.contains("/objects/") && !n.contains("copal.db"));
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ref_that_climbs_or_hides_moves_nothing() {
    let world = World::new(0).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.repo.push_ok("first").await;
    let head = world.repo.git(&["rev-parse", "HEAD"]).trim().to_owned();
    let refs = world.repo.git(&["ls-remote", "copal"]);
    let git = world.cloud.dir.path().join("git");
    let before = files(&git);
    for name in [
        "refs/heads/../../x",
        "refs/heads/../../../config",
        "refs/heads/a..b",
        "refs/heads/.hidden",
        "refs/heads/x.lock",
        "refs/heads/x\u{1b}[31m",
        "refs/heads/-c core.hooksPath=/tmp",
        "../../hooks/pre-receive",
        "HEAD",
        "refs/copal/x",
        "refs/heads",
        "refs/tags/v1.0.0~1",
    ] {
        let (code, said) = push_by_hand(&world, name.as_bytes(), &head).await;
        assert!(code == 200 || code == 400, "{name}: {code}");
        assert!(!said.contains(&format!("ok {name}")), "{name}: {said}");
    }
    for path in
        ["/git/..%2f..%2fetc.git", "/git/--upload-pack=x.git", "/git/porch%00.git", "/git/porch.git/../x.git"]
    {
        let route = format!("{path}/info/refs?service=git-receive-pack");
        assert_eq!(status(&world.cloud, &world.cloud.token, "GET", &route, None).await.0 / 100, 4, "{path}");
    }
    assert_eq!(world.repo.git(&["ls-remote", "copal"]), refs);
    assert_eq!(files(&git), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_with_a_git_folder_or_a_link_that_leads_out_is_refused() {
    let world = World::new(0).await;
    Services { services: &[("app", STAY, SHORT)] }.write_to(&world.repo);
    world.repo.commit("first");
    let repo = &world.repo;
    let blob = repo.git(&["hash-object", "-w", "docker-compose.yml"]).trim().to_owned();
    for entry in [".git/config", ".GIT/hooks/x", "..", "git~1/x"] {
        let script = format!(
            "inner=$(printf '100644 blob {blob}\\t%s\\n' config | git mktree); \
             tree=$(printf '040000 tree %s\\t{}\\n' $inner | git mktree --missing); \
             git commit-tree -m x $tree",
            entry.split('/').next().unwrap()
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(repo.path())
            .env("GIT_AUTHOR_NAME", "x")
            .env("GIT_AUTHOR_EMAIL", "x@x")
            .env("GIT_COMMITTER_NAME", "x")
            .env("GIT_COMMITTER_EMAIL", "x@x")
            .output()
            .unwrap();
        let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(commit.len(), 40, "{}", text(&output));
        let output = repo.push_args(&["copal", &format!("{commit}:refs/heads/main")]).await;
        assert!(!output.status.success() && text(&output).contains("hasDot"), "{entry}: {}", text(&output));
    }
    for target in ["/etc/passwd", "../../../../etc/passwd"] {
        let _ = std::fs::remove_file(repo.path().join("app/link"));
        std::os::unix::fs::symlink(target, repo.path().join("app/link")).unwrap();
        let output = repo.push("link").await;
        assert!(text(&output).contains("points out of the project"), "{target}: {}", text(&output));
    }
    // Nothing was released, and the repository still takes what is right.
    assert!(world.cloud.get("/fleets/porch/releases").await["items"].as_array().unwrap().is_empty());
    std::fs::remove_file(repo.path().join("app/link")).unwrap();
    repo.push_ok("right").await;
    eventually("the release is there", 10, || async {
        let id = world.latest().await["id"].clone();
        if id.is_string() { Ok(()) } else { Err(id.to_string()) }
    })
    .await;
}
