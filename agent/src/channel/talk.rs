//! What is made of each frame of the cloud, the same by WebSocket and by exchange. A hint, a welcome and a command go to whoever
//! they are for; nothing of them is believed here.

use std::{sync::Arc, time::Duration};

use copal_protocol::{
    channel::{Ack, AckState, CloudFrame, DeviceFrame, Hello, Welcome},
    ids::Sha256Hex,
    telemetry::FEATURE,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    meter::Traffic,
    streams::{self, Kinds},
};
use crate::{
    clock,
    orders::{Acks, Received},
    spool::Outbox,
    target::{Condition, Nudges},
};

/// Whom frames are for.
pub(super) struct Talk {
    pub(super) nudges: watch::Sender<Nudges>,
    pub(super) condition: watch::Receiver<Condition>,
    pub(super) commands: mpsc::Sender<Received>,
    pub(super) acks: Arc<Acks>,
    pub(super) kinds: Kinds,
    pub(super) outbox: Arc<Outbox>,
}

/// The cloud ends the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bye {
    pub(super) code: String,
    pub(super) within: Duration,
}

/// What follows from a frame.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// To say at once.
    pub(super) reply: Option<DeviceFrame>,
    pub(super) welcome: Option<Welcome>,
    pub(super) bye: Option<Bye>,
}

impl Talk {
    /// The first frame; `streams` where this channel can have them.
    pub(super) fn hello(&self, streams: bool) -> DeviceFrame {
        let features = if streams { self.kinds.features() } else { Vec::new() }.into_iter();
        DeviceFrame::Hello(Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: clock::boot_id(),
            uptime_s: clock::uptime_s(),
            features: features.chain([FEATURE.to_owned()]).collect(),
            etag: self.condition.borrow().mark.sha256,
        })
    }

    pub(super) fn take(&self, frame: CloudFrame) -> Taken {
        let mut taken = Taken::default();
        match frame {
            CloudFrame::Welcome(welcome) => {
                // A visit is no channel, and makes of it what it does.
                if !self.nudges.borrow().seldom {
                    self.hint(welcome.etag, welcome.root, true);
                }
                self.outbox.welcomed(welcome.stored);
                taken.welcome = Some(welcome);
            }
            CloudFrame::Hint { etag, root } => self.hint(etag, root, false),
            CloudFrame::Cmd(command) => {
                let id = command.id;
                if self.commands.try_send(Received { command, at: Instant::now() }).is_err() {
                    let message = "too many commands wait on this device; ask again".to_owned();
                    let (state, code) = (AckState::Rejected, Some("busy".to_owned()));
                    self.acks.push(Ack { id, state, code, message, result: None });
                }
            }
            // A WebSocket takes them itself, and these are of an exchange.
            CloudFrame::Open(open) => taken.reply = Some(streams::unknown(open.stream)),
            CloudFrame::Bye { code, retry_within_s } => {
                // It goes into the log.
                let code = code.chars().take(64).collect();
                taken.bye = Some(Bye { code, within: Duration::from_secs(retry_within_s.into()) });
            }
            CloudFrame::Stored(stored) => self.outbox.stored(stored),
            CloudFrame::Closed(_) | CloudFrame::Credit(_) | CloudFrame::Resize { .. } => {}
        }
        taken
    }

    fn hint(&self, etag: Option<Sha256Hex>, root: Option<u64>, welcome: bool) {
        self.nudges.send_if_modified(|nudges| {
            let news = nudges.hinted != etag || nudges.hinted_root != root || (welcome && !nudges.up);
            nudges.hinted = etag;
            nudges.hinted_root = root;
            nudges.up |= welcome;
            news
        });
    }

    /// No channel any more: polls go on at once.
    pub(super) fn down(&self) {
        self.nudges.send_if_modified(|nudges| std::mem::take(&mut nudges.up));
    }

    /// There is none any more because its bytes are spared: polls are seldom, and none is due for that.
    pub(super) fn spare(&self) {
        self.nudges.send_if_modified(|nudges| {
            nudges.up = false;
            false
        });
    }

    /// What a visit brought: a poll is due where that is news, where the last one failed, or by `poll`.
    pub(super) fn visited(&self, welcome: Option<&Welcome>, poll: bool) -> bool {
        let condition = self.condition.borrow();
        let news = welcome.is_none_or(|welcome| {
            welcome.etag != condition.mark.sha256 || welcome.root > Some(condition.root_version)
        });
        let due = poll || news || !condition.online;
        drop(condition);
        self.nudges.send_if_modified(|nudges| {
            if let Some(welcome) = welcome {
                (nudges.hinted, nudges.hinted_root) = (welcome.etag, welcome.root);
            }
            nudges.asked += u64::from(due);
            due
        });
        due
    }
}

/// What a frame of the cloud is for.
pub(super) fn heard(frame: &CloudFrame) -> Traffic {
    match frame {
        CloudFrame::Cmd(_) => Traffic::Commands,
        CloudFrame::Stored(_) => Traffic::Events,
        CloudFrame::Open(_) | CloudFrame::Closed(_) | CloudFrame::Credit(_) | CloudFrame::Resize { .. } => {
            Traffic::Streams
        }
        CloudFrame::Welcome(_) | CloudFrame::Hint { .. } | CloudFrame::Bye { .. } => Traffic::Control,
    }
}

/// What a frame of the device is for.
pub(super) fn said(frame: &DeviceFrame) -> Traffic {
    use copal_protocol::channel::Class;
    match frame {
        DeviceFrame::Ack(_) => Traffic::Commands,
        DeviceFrame::Report { .. } => Traffic::Events,
        DeviceFrame::Batch(batch) if batch.class == Class::Telemetry => Traffic::Telemetry,
        DeviceFrame::Batch(_) => Traffic::Events,
        DeviceFrame::Opened { .. } | DeviceFrame::Closed(_) | DeviceFrame::Credit(_) => Traffic::Streams,
        DeviceFrame::Hello(_) | DeviceFrame::Leave { .. } => Traffic::Control,
    }
}
