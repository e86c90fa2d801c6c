//! A shell in a service's container, by the engine.

use std::{sync::Arc, time::Duration};

use copal_protocol::ids::{Name, SessionId};
use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt as _;

use super::{
    doors::{Control, MARK, OwnDoors, Pty},
    open::Record,
    processes,
};
use crate::{
    channel::streams::End,
    engine::{Engine, EngineApi as _, EngineError, ExecRequest, ExecState, RunState},
    plan::labels,
};

/// Where images have a shell, the most comfortable first.
const SHELLS: &[&str] = &["/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh", "/bin/ash", "/busybox/sh"];
/// How long a shell that is tried may take, and how often it is looked at.
const TRY: (Duration, u32) = (Duration::from_millis(100), 50);
/// How often a terminal is told its size until its process is there.
const SIZE: (Duration, u32) = (Duration::from_millis(50), 40);

fn failed(error: &EngineError) -> End {
    End::because(if error.is_absent() { "engine_absent" } else { "failed" }, error.to_string())
}

/// The service's container, and a shell of its image.
pub(super) async fn find(doors: &OwnDoors, name: &Name, record: &mut Record) -> Result<(), End> {
    let found = doors.engine.containers(&doors.instance).await.map_err(|e| failed(&e))?;
    let mut of_service: Vec<_> = found
        .own
        .into_iter()
        .filter(|c| c.labels.get(labels::SERVICE).is_some_and(|s| s == name.as_str()))
        .collect();
    // While one takes over from another both are there.
    of_service.sort_by_key(|c| c.state != RunState::Running);
    let Some(container) = of_service.into_iter().next() else {
        return Err(End::because("service_unknown", format!("no service {name} is on this device")));
    };
    if container.state != RunState::Running {
        let why = format!("service {name} does not run, and a shell needs its container: start it first");
        return Err(End::because("not_running", why));
    }
    for shell in SHELLS {
        if works(&doors.engine, &container.id, shell).await.map_err(|e| failed(&e))? {
            record.container = Some(container.id);
            record.shell = (*shell).to_owned();
            return Ok(());
        }
    }
    let why = format!("the image of service {name} has no shell (looked for {})", SHELLS.join(", "));
    Err(End::because("no_shell", why))
}

/// Whether a program is there and is a shell. The engine's own answers differ by version; that it ran and said 0 does not.
async fn works(engine: &Engine, container: &str, shell: &str) -> Result<bool, EngineError> {
    let command = [shell, "-c", ":"].map(str::to_owned).to_vec();
    let exec = engine.exec_create(container, ExecRequest { command, ..ExecRequest::default() }).await?;
    match engine.exec_run(&exec).await {
        Ok(()) => {}
        Err(error @ EngineError::Absent { .. }) => return Err(error),
        // It is not there.
        Err(_) => return Ok(false),
    }
    Ok(ended(engine, &exec).await? == Some(0))
}

/// What a process ended with, where it does soon.
async fn ended(engine: &Engine, exec: &str) -> Result<Option<i64>, EngineError> {
    for _ in 0..TRY.1 {
        let state = engine.exec_state(exec).await?;
        if !state.running && state.exit_code.is_some() {
            return Ok(state.exit_code);
        }
        tokio::time::sleep(TRY.0).await;
    }
    Ok(None)
}

pub(super) async fn open(engine: &Engine, record: &mut Record, cols: u16, rows: u16) -> Result<Pty, End> {
    let container = record.container.clone().unwrap_or_default();
    let request = ExecRequest {
        command: vec![record.shell.clone()],
        env: vec!["TERM=xterm-256color".to_owned(), format!("{MARK}={}", record.session_id)],
        tty: true,
        root: false,
    };
    let exec = engine.exec_create(&container, request).await.map_err(|e| failed(&e))?;
    record.exec = Some(exec.clone());
    let (socket, came) = engine.exec_attach(&exec).await.map_err(|e| failed(&e))?;
    let (read, write) = socket.into_split();
    let control = Shell { engine: engine.clone(), exec: Arc::from(exec) };
    control.resize(cols, rows).await;
    Ok(Pty {
        output: Box::new(std::io::Cursor::new(came).chain(read)),
        input: Box::new(write),
        control: Box::new(control),
    })
}

struct Shell {
    engine: Engine,
    exec: Arc<str>,
}

impl Control for Shell {
    fn resize(&self, cols: u16, rows: u16) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A process that is about to start has no window yet.
            for _ in 0..SIZE.1 {
                match self.engine.exec_resize(&self.exec, cols, rows).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%error, "a terminal was not resized"),
                }
                if !self.engine.exec_state(&self.exec).await.is_ok_and(|s| s.running || s.exit_code.is_none())
                {
                    return;
                }
                tokio::time::sleep(SIZE.0).await;
            }
        })
    }

    fn exit_code(&self) -> BoxFuture<'_, Option<i64>> {
        Box::pin(async move { ended(&self.engine, &self.exec).await.ok().flatten() })
    }
}

/// Ends every process of the session: from within the container, with the engine's power, and then from here, whatever was said there: the
/// shell that swept is the container's own, and where there are as many processes as may be it did not even start.
pub(super) async fn kill(engine: &Engine, record: &Record) {
    let Some(container) = record.container.as_deref() else { return };
    let command = vec![record.shell.clone(), "-c".to_owned(), script(record.session_id)];
    let run = async {
        let exec = engine
            .exec_create(container, ExecRequest { command, root: true, ..ExecRequest::default() })
            .await?;
        engine.exec_run(&exec).await?;
        ended(engine, &exec).await
    };
    let swept = run.await;
    let state = match record.exec.as_deref() {
        Some(exec) => engine.exec_state(exec).await,
        None => Ok(ExecState { running: false, exit_code: None, pid: None }),
    };
    match (swept, state) {
        // The container is gone, and all of its processes with it.
        (Err(error), _) | (_, Err(error)) if error.is_not_found() => {}
        (swept, state) => {
            let pid = state.ok().filter(|s| s.running).and_then(|s| s.pid);
            let left =
                processes::kill(record.session_id, pid.and_then(|p| p.try_into().ok()), Some(container))
                    .await;
            if left > 0 {
                tracing::error!(session = %record.session_id, left, ?swept, "processes of a terminal could not be killed: restart the service");
            }
        }
    }
}

/// Shell words alone: the image may have no other program. Killed is what has the session's mark among its variables, and what belongs to
/// a session that such a process leads; several rounds, as a killed one may have started another.
fn script(session: SessionId) -> String {
    format!(
        r#"m={MARK}={session}; s=" "
for r in 1 2 3 4 5 6; do
n=0
for d in /proc/[0-9]*; do
p=${{d#/proc/}}
[ "$p" = $$ ] && continue
e=
{{ while IFS= read -r l || [ -n "$l" ]; do e="$e$l"; l=; done <"$d/environ"; }} 2>/dev/null
t=
{{ while IFS= read -r l || [ -n "$l" ]; do t="$t $l"; l=; done <"$d/stat"; }} 2>/dev/null
set -- ${{t##*) }}
[ "$1" = Z ] && continue
hit=
case "$e" in *$m*) hit=1; [ "$4" = "$p" ] && s="$s$p ";; esac
case "$s" in *" $4 "*) hit=1;; esac
[ -n "$hit" ] && kill -9 "$p" 2>/dev/null && n=1
done
[ $r -gt 1 ] && [ $n = 0 ] && exit 0
done
exit 1"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Each shell of this machine that can be had; the script must be understood by all.
    #[test]
    fn the_script_kills_the_session_and_nothing_else_in_any_shell() {
        let mut tried = 0;
        for shell in [&["sh"][..], &["bash"], &["dash"], &["busybox", "sh"]] {
            let there = Command::new(shell[0]).args(&shell[1..]).args(["-c", ":"]).status();
            if !there.is_ok_and(|s| s.success()) {
                continue;
            }
            tried += 1;
            let session = SessionId::from_bytes([tried, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
            let sleep = |marked: bool, program: &[&str]| {
                let mut command = Command::new(program[0]);
                command.args(&program[1..]).stdin(Stdio::null()).stdout(Stdio::null());
                if marked {
                    command.env(MARK, session.to_string());
                }
                command.spawn().unwrap()
            };
            let mut other = sleep(false, &["sleep", "600"]);
            let mut marked = sleep(true, &["sleep", "600"]);
            // It leads a session, one of whose processes has lost its variables.
            let mut leader = sleep(true, &["setsid", "sh", "-c", "env -i sleep 601 & wait"]);
            std::thread::sleep(Duration::from_millis(300));
            let status = Command::new(shell[0]).args(&shell[1..]).args(["-c", &script(session)]).status();
            assert_eq!(status.unwrap().code(), Some(0), "{shell:?}");
            assert_eq!(marked.wait().unwrap().code(), None, "{shell:?}: killed");
            assert_eq!(leader.wait().unwrap().code(), None, "{shell:?}: killed");
            assert!(
                other.try_wait().unwrap().is_none(),
                "{shell:?}: {} is none of the session's",
                other.id()
            );
            other.kill().unwrap();
            other.wait().unwrap();
            let left = Command::new("pgrep").args(["-fx", "sleep 601"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&left.stdout), "", "{shell:?}");
        }
        assert!(tried >= 2);
    }
}
